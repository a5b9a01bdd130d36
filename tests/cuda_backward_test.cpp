// The steps before a backward's passes, alone: rows, coarse branch and transposed mask of random
// problems, held against fp64.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "cuda/common/backward.hpp"
#include "device/device_memory.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"
#include "support/backend_run.hpp"
#include "support/gpu_test.hpp"

namespace vidsparse::testing {
namespace {

using reference::Side;
using tools::DeviceMemory;

class CudaBackward : public GpuTest {};

using Vector = std::vector<double>;

double number(const TensorView& tensor, std::int64_t i, std::int64_t j, std::int64_t k,
              std::int64_t d) {
  return reference::load<double>(tensor, tensor.offset(i, j, k) + d);
}

/// A random problem's forward by the reference, and the arguments of its backward.
struct Case {
  const RandomProblem& r;
  Results results;
  BackwardArgs args;

  explicit Case(const RandomProblem& problem) : r(problem), results(problem) {
    const Plan plan(r.problem(), {Device{}, "reference", {}});
    ForwardArgs forward;
    forward.q = r.q.ref;
    forward.k = r.k.ref;
    forward.v = r.v.ref;
    forward.lengths = r.lengths;
    forward.selection = r.selection;
    forward.scale = r.scale;
    forward.gate = r.gate;
    forward.out = results.out.ref;
    forward.lse = results.lse.ref;
    forward.mask = results.mask;
    if (!r.gate.is_none()) {
      forward.oc = results.oc.ref;
      forward.coarse_max = results.coarse_max.ref;
      forward.coarse_sum = results.coarse_sum.ref;
    }
    const std::size_t bytes = plan.workspace_bytes(forward);
    Poisoned workspace(bytes);
    plan.forward(forward, {workspace.give_bytes(bytes), bytes});
    args = backward_of(forward);
    args.dout = r.dout.ref;
    if (r.with_dlse) args.dlse = r.dlse.ref;
    if (r.gate.is_tensor()) args.dgate = results.dgate.ref;
  }

  double gate(std::int64_t b, std::int64_t token, std::int64_t h, std::int64_t d) const {
    if (r.gate.is_none()) return 0;
    return r.gate.is_scalar() ? r.gate.value() : number(r.gate.tensor(), b, token, h, d);
  }
};

/// Errors of a row against fp64: below `bounds`, and beside them 1e-5 of its largest magnitude.
void expect_row(const char* what, const float* got, const Vector& exact, const Vector& bounds) {
  double largest = 1e-30;
  for (const double value : exact) largest = std::max(largest, std::abs(value));
  double excess = -HUGE_VAL;
  for (std::size_t d = 0; d < exact.size(); ++d) {
    const double error = std::abs(double{got[d]} - exact[d]);
    excess = std::isnan(error) ? HUGE_VAL : std::max(excess, error - bounds[d]);
  }
  EXPECT_LE(excess, 1e-5 * largest) << what;
}

/// Exact sums with bounds of their errors.
struct Bounded {
  explicit Bounded(std::int64_t d) : exact(static_cast<std::size_t>(d)), bounds(exact) {}

  void add(std::int64_t e, double value, double bound) {
    exact[static_cast<std::size_t>(e)] += value;
    bounds[static_cast<std::size_t>(e)] += bound;
  }
  void scale(double factor) {
    for (Vector* all : {&exact, &bounds}) {
      for (double& value : *all) value *= factor;
    }
  }

  Vector exact;
  Vector bounds;
};

/// A fragment's entry of the table, given which of its slots have weights.
void expect_entry(const cuda::KeyFragment& entry, const cuda::Fragment& fragment,
                  const cuda::EdgeBoxes& edges, std::uint64_t alive) {
  const auto high = static_cast<std::uint32_t>(entry.valid >> 32);
  const std::int32_t edge = alive == 0 ? -1 : edges.find(fragment);
  ASSERT_EQ(cuda::KeyFragment::is_edge(high),
            edge >= 0 || (edges.count == 0 && alive >> 63 == 1 && alive != ~std::uint64_t{0}));
  if (edge >= 0) {
    ASSERT_EQ(entry.valid & 0xFFFFFFFF, alive);
    ASSERT_EQ(cuda::KeyFragment::units(high), edges.boxes[edge].units());
    ASSERT_EQ(cuda::KeyFragment::map(entry.place), cuda::Side::kMaxSegments + edge);
  } else if (edges.count == 0) {
    ASSERT_EQ(entry.valid, alive);
  } else {
    ASSERT_EQ(entry.valid == 0, alive == 0);
    ASSERT_EQ(entry.valid == ~std::uint64_t{0}, alive == ~std::uint64_t{0});
  }
}

/// With edge boxes, rows of fragments that fit one are in its order.
void expect_rows(const Case& c, const cuda::Context& context, const cuda::BackwardParts& parts,
                 const cuda::EdgeBoxes& edges) {
  const std::int64_t heads = context.heads();
  const std::int64_t parts_of_tile = context.query.fragments_per_tile;
  const cuda::Side side = cuda::with_lengths(context.query, c.r.lengths.query);
  for (std::int64_t b = 0; b < context.batch(); ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t n = 0; n < side.tiles * parts_of_tile; ++n) {
        const auto tile = static_cast<std::int32_t>(n / parts_of_tile);
        const cuda::Fragment fragment = edges.ordered(side.fragment(
            static_cast<std::int32_t>(b), tile, static_cast<std::int32_t>(n % parts_of_tile)));
        const std::int64_t at = (b * heads + h) * side.tiles * parts_of_tile + n;
        const float* rows = parts.rows + at * 2 * cuda::kFragment;
        std::uint64_t alive = 0;
        for (std::int32_t slot = 0; slot < cuda::kFragment; ++slot) {
          const std::int64_t token = fragment.token(slot);
          const double lse = token < 0 ? -HUGE_VAL : number(c.args.lse, b, h, token, 0);
          const bool weighs = lse != -HUGE_VAL;
          alive |= std::uint64_t{weighs} << slot;
          if (!weighs) {
            ASSERT_TRUE(std::isinf(rows[slot]));
            ASSERT_EQ(rows[cuda::kFragment + slot], 0);
            continue;
          }
          double delta = c.r.with_dlse ? -number(c.args.dlse, b, h, token, 0) : 0;
          double magnitude = std::abs(delta);
          for (std::int64_t d = 0; d < context.head_dim(); ++d) {
            const double coarse = c.r.gate.is_none() ? 0 : number(c.args.oc, b, h, tile, d);
            const double out = number(c.args.out, b, token, h, d);
            const double pooled = c.gate(b, token, h, d) * coarse;
            const double dout = number(c.args.dout, b, token, h, d);
            delta += dout * (out - pooled);
            magnitude += std::abs(dout) * (std::abs(out) + std::abs(pooled));
          }
          ASSERT_NEAR(rows[slot], lse * 1.4426950408889634, 1e-6 * (1 + std::abs(lse)));
          ASSERT_NEAR(rows[cuda::kFragment + slot], delta, 1e-5 * magnitude + 1e-30);
        }
        expect_entry(parts.queries[at], fragment, edges, alive);
      }
    }
  }
}

/// d_oc, and the coarse branch worked out from it. There every factor of a product is rounded to
/// tf32, by 2^-11 of it at most; errors of scores become those of weights.
void expect_coarse(const Case& c, const cuda::Context& context, const cuda::BackwardParts& parts) {
  constexpr double kRounding = 1.0 / 2048;
  const Side query(c.r.setting.query, c.r.lengths.query);
  const Side key(c.r.setting.key, c.r.lengths.key);
  const std::int64_t d = context.head_dim();
  const double scale = context.scale(c.args.scale);
  const auto row = [&](const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t n) {
    return static_cast<const float*>(tensor.data) + tensor.offset(b, h, n);
  };
  const auto dot = [&](const float* x, const float* y, bool magnitudes = false) {
    double sum = 0;
    for (std::int64_t e = 0; e < d; ++e) {
      const double product = double{x[e]} * double{y[e]};
      sum += magnitudes ? std::abs(product) : product;
    }
    return sum;
  };
  for (std::int64_t b = 0; b < context.batch(); ++b) {
    for (std::int64_t g = 0; g < context.key_heads(); ++g) {
      std::vector<Bounded> dkc(static_cast<std::size_t>(key.tiles()), Bounded(d));
      std::vector<Bounded> dvc = dkc;
      for (std::int64_t h = g * context.group(); h < (g + 1) * context.group(); ++h) {
        for (std::int64_t i = 0; i < query.tiles(); ++i) {
          Bounded d_oc(d);
          query.for_each_token(b, i, [&](std::int64_t token) {
            for (std::int64_t e = 0; e < d; ++e) {
              d_oc.add(e, number(c.args.dout, b, token, h, e) * c.gate(b, token, h, e), 0);
            }
          });
          expect_row("d_oc", row(parts.d_oc, b, h, i), d_oc.exact, d_oc.bounds);
          Bounded dqc(d);
          const double sum = number(c.args.coarse_sum, b, h, i, 0);
          const auto count = static_cast<double>(query.valid(b, i));
          for (std::int64_t j = 0; sum != 0 && count > 0 && j < key.tiles(); ++j) {
            if (key.valid(b, j) == 0) continue;
            const float* given = row(parts.d_oc, b, h, i);
            const float* qc = row(parts.pool.qc, b, h, i);
            const float* kc = row(parts.pool.kc, b, g, j);
            const float* vc = row(parts.pool.vc, b, g, j);
            const double inner = dot(given, row(c.args.oc, b, h, i));
            const double weight =
                std::exp(dot(qc, kc) * scale - number(c.args.coarse_max, b, h, i, 0)) / sum;
            const double weight_error =
                weight * kRounding * (1 + 2 * std::abs(scale) * dot(qc, kc, true));
            const double d_weight = dot(given, vc) - inner;
            const double d_score = scale * weight * d_weight;
            const double d_score_error =
                std::abs(scale) * (weight_error * std::abs(d_weight) +
                                   2 * weight * kRounding * dot(given, vc, true)) +
                kRounding * std::abs(d_score);
            for (std::int64_t e = 0; e < d; ++e) {
              const auto at = static_cast<std::size_t>(j);
              const auto product = [&](Bounded& to, double left, double error, double right) {
                to.add(e, left * right, 2 * (error + kRounding * std::abs(left)) * std::abs(right));
              };
              product(dqc, d_score / count, d_score_error / count, kc[e]);
              product(dkc[at], d_score, d_score_error, qc[e]);
              product(dvc[at], weight, weight_error, given[e]);
            }
          }
          expect_row("dqc", row(parts.dqc, b, h, i), dqc.exact, dqc.bounds);
        }
      }
      for (std::int64_t j = 0; j < key.tiles(); ++j) {
        const auto at = static_cast<std::size_t>(j);
        const double share = 1.0 / std::max<double>(1, static_cast<double>(key.valid(b, j)));
        dkc[at].scale(share);
        dvc[at].scale(share);
        expect_row("dkc", row(parts.dkc, b, g, j), dkc[at].exact, dkc[at].bounds);
        expect_row("dvc", row(parts.dvc, b, g, j), dvc[at].exact, dvc[at].bounds);
      }
    }
  }
}

/// Every key tile of a head once, the longest lists first as far as a 64th of the longest tells
/// them apart, equal ones as they lie.
void expect_order(const cuda::ListOrder& order, const TileMask& by_key) {
  for (std::int32_t plane = 0; order.tiles > 0 && plane < order.planes; ++plane) {
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(order.tiles));
    const std::int64_t words = order.row_words;
    for (std::int64_t row = 0; row < std::int64_t{order.members} * order.tiles; ++row) {
      const std::uint64_t* list =
          by_key.view().words + (std::int64_t{plane} * order.members * order.tiles + row) * words;
      for (std::int64_t word = 0; word < words; ++word) {
        lengths[static_cast<std::size_t>(row % order.tiles)] += std::popcount(list[word]);
      }
    }
    const std::int32_t* tiles = order.order + std::int64_t{plane} * order.tiles;
    std::vector<bool> seen(lengths.size());
    const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    for (std::int32_t i = 0; i < order.tiles; ++i) {
      ASSERT_TRUE(tiles[i] >= 0 && tiles[i] < order.tiles) << tiles[i];
      const auto tile = static_cast<std::size_t>(tiles[i]);
      ASSERT_FALSE(seen[tile]) << "tile " << tile << " twice";
      seen[tile] = true;
      if (i == 0) continue;
      const std::int64_t before = lengths[static_cast<std::size_t>(tiles[i - 1])];
      const std::int64_t growth = lengths[tile] - before;
      ASSERT_LE(growth, longest / 64 + 1);
      if (growth >= 0) {  // as long in steps of a 64th
        ASSERT_LT(tiles[i - 1], tiles[i]);
      }
    }
  }
}

TEST_P(CudaBackward, FirstStepsOfRandomProblems) {
  const std::uint64_t seed = test_seed();
  const std::int64_t count = test_problems(80);
  for (std::int64_t n = 0; n < count; ++n) {
    // Again until it is a whole op, by seeds that no neighbour of this one begins with.
    auto problem = random_problem(seed + static_cast<std::uint64_t>(n), {.gpu = true});
    for (std::uint64_t again = 1; problem->use != Use::whole; ++again) {
      problem = random_problem(seed + static_cast<std::uint64_t>(n) + (again << 32), {.gpu = true});
    }
    SCOPED_TRACE(problem->to_string());
    Case c(*problem);
    const RandomProblem& r = c.r;
    const core::Setting setting{r.problem(), r.setting.query, r.setting.key, kGpu, {}};
    const cuda::Context context(setting);
    cuda::prepare_coarse_backward(context);

    core::Arena counted(nullptr);
    take_key_order(counted, context, take_backward_parts(counted, context, c.args));
    Poisoned workspace(counted.used());
    std::byte* host = workspace.give_bytes(counted.used());
    DeviceMemory memory(kGpu);
    copy_to_device(r, c.results, memory);
    memory.add_written(workspace.storage().data(), workspace.storage().size());
    BackwardArgs args = c.args;
    for (TensorView* tensor :
         {&args.q, &args.k, &args.v, &args.lengths.query, &args.lengths.key, &args.out, &args.lse,
          &args.oc, &args.coarse_max, &args.coarse_sum, &args.dout, &args.dlse}) {
      *tensor = memory.at(*tensor);
    }
    args.mask = memory.at(args.mask);
    args.dgate = memory.at(args.dgate);
    if (args.gate.is_tensor()) args.gate = Gate(memory.at(args.gate.tensor()));
    core::Arena on_device(memory.at(host));
    const cuda::BackwardParts given = take_backward_parts(on_device, context, args);
    cuda::TableWork table = keys_table(context, args, given);
    table.order = take_key_order(on_device, context, given);
    // The backends differ in that alone.
    cuda::EdgeBoxes edges;
    if (GetParam() == "sm90") {
      edges = make_edge_boxes(context.query, static_cast<bool>(args.lengths.query));
    }
    begin_backward(context, args, given, table, nullptr, edges);
    memory.fetch();
    EXPECT_TRUE(workspace.intact());

    core::Arena fetched(host);
    const cuda::BackwardParts parts = take_backward_parts(fetched, context, c.args);
    TileMask mask(r.mask_shape());
    std::copy_n(c.results.mask.words, mask.shape().words(), mask.ref().words);
    const TileMask by_key = mask.transposed();
    for (std::int64_t word = 0; word < by_key.shape().words(); ++word) {
      ASSERT_EQ(parts.by_key.words[word], by_key.view().words[word]) << "word " << word;
    }
    expect_order(take_key_order(fetched, context, parts), by_key);
    expect_rows(c, context, parts, edges);
    if (!r.gate.is_none()) expect_coarse(c, context, parts);
    if (HasFailure()) return;
  }
}

TEST_P(CudaBackward, OrderOfManyTiles) {
  std::mt19937_64 engine(test_seed());
  TileMask mask({1, 4, 2100, 700});
  for (std::int64_t j = 0; j < 700; ++j) {
    const std::uint64_t popular = engine() % 100;
    for (std::int64_t h = 0; h < 4; ++h) {
      for (std::int64_t i = 0; i < 2100; ++i) {
        if (engine() % 100 < popular) mask.set(0, h, i, j);
      }
    }
  }
  const TileMask by_key = mask.transposed();
  std::vector<std::int32_t> lengths(2 * 700);
  std::vector<std::int32_t> tiles(2 * 700);
  DeviceMemory memory(kGpu);
  memory.add(by_key.view().words, static_cast<std::size_t>(by_key.shape().words()) * 8);
  memory.add_written(lengths.data(), lengths.size() * 4);
  memory.add_written(tiles.data(), tiles.size() * 4);
  cuda::ListOrder order;
  order.mask = memory.at(by_key.view()).words;
  order.planes = 2;
  order.members = 2;
  order.tiles = 700;
  order.row_words = static_cast<std::int32_t>(by_key.shape().row_words());
  order.lengths = static_cast<std::int32_t*>(memory.at(lengths.data()));
  order.order = static_cast<std::int32_t*>(memory.at(tiles.data()));
  cuda::TableWork work;
  work.order = order;
  fill_fragment_table(work, nullptr);
  memory.fetch();
  order.order = tiles.data();
  expect_order(order, by_key);
}

INSTANTIATE_TEST_SUITE_P(All, CudaBackward, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
