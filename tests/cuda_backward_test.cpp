// The steps before a backward's passes, alone: rows, coarse branch and transposed mask of random
// problems, held against fp64.

#include <gtest/gtest.h>

#include <cmath>
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
    args.q = forward.q;
    args.k = forward.k;
    args.v = forward.v;
    args.lengths = forward.lengths;
    args.scale = forward.scale;
    args.mask = forward.mask;
    args.gate = forward.gate;
    args.out = forward.out;
    args.lse = forward.lse;
    args.oc = forward.oc;
    args.coarse_max = forward.coarse_max;
    args.coarse_sum = forward.coarse_sum;
    args.dout = r.dout.ref;
    if (r.with_dlse) args.dlse = r.dlse.ref;
    if (r.gate.is_tensor()) args.dgate = results.dgate.ref;
  }

  double gate(std::int64_t b, std::int64_t token, std::int64_t h, std::int64_t d) const {
    if (r.gate.is_none()) return 0;
    return r.gate.is_scalar() ? r.gate.value() : number(r.gate.tensor(), b, token, h, d);
  }
};

/// Largest error of a row against fp64, as a share of the largest magnitude of what was summed up:
/// by default the row's own.
void expect_row(const char* what, const float* got, const Vector& exact, double tolerance,
                double largest = 1e-30) {
  double worst = 0;
  for (std::size_t d = 0; d < exact.size(); ++d) {
    const double error = std::abs(double{got[d]} - exact[d]);
    largest = std::max(largest, std::abs(exact[d]));
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  }
  EXPECT_LE(worst, tolerance * largest) << what;
}

void expect_rows(const Case& c, const cuda::Context& context, const cuda::BackwardParts& parts) {
  const std::int64_t heads = context.heads();
  const std::int64_t parts_of_tile = context.query.fragments_per_tile;
  const cuda::Side side = cuda::with_lengths(context.query, c.r.lengths.query);
  for (std::int64_t b = 0; b < context.batch(); ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t n = 0; n < side.tiles * parts_of_tile; ++n) {
        const auto tile = static_cast<std::int32_t>(n / parts_of_tile);
        const cuda::Fragment fragment = side.fragment(static_cast<std::int32_t>(b), tile,
                                                      static_cast<std::int32_t>(n % parts_of_tile));
        const std::int64_t at = (b * heads + h) * side.tiles * parts_of_tile + n;
        const float* rows = parts.rows + at * 2 * cuda::kFragment;
        for (std::int32_t slot = 0; slot < cuda::kFragment; ++slot) {
          const std::int64_t token = fragment.token(slot);
          const double lse = token < 0 ? -HUGE_VAL : number(c.args.lse, b, h, token, 0);
          const bool weighs = lse != -HUGE_VAL;
          ASSERT_EQ(parts.queries[at].valid >> slot & 1, weighs ? 1U : 0U);
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
      }
    }
  }
}

/// d_oc, and the coarse branch worked out from it.
void expect_coarse(const Case& c, const cuda::Context& context, const cuda::BackwardParts& parts) {
  const Side query(c.r.setting.query, c.r.lengths.query);
  const Side key(c.r.setting.key, c.r.lengths.key);
  const std::int64_t d = context.head_dim();
  const double scale = context.scale(c.args.scale);
  const auto row = [&](const TensorRef& tensor, std::int64_t b, std::int64_t h, std::int64_t n) {
    return static_cast<const float*>(tensor.data) + tensor.offset(b, h, n);
  };
  const auto dot = [&](const float* x, const float* y) {
    double sum = 0;
    for (std::int64_t e = 0; e < d; ++e) sum += double{x[e]} * double{y[e]};
    return sum;
  };
  const auto zeros = [&](std::int64_t rows) {
    return std::vector<Vector>(static_cast<std::size_t>(rows), Vector(static_cast<std::size_t>(d)));
  };
  for (std::int64_t b = 0; b < context.batch(); ++b) {
    for (std::int64_t g = 0; g < context.key_heads(); ++g) {
      std::vector<Vector> dkc = zeros(key.tiles());
      std::vector<Vector> dvc = zeros(key.tiles());
      // With one key tile a score's gradient is a difference of equal numbers.
      double d_score_scale = 1e-30;
      for (std::int64_t h = g * context.group(); h < (g + 1) * context.group(); ++h) {
        for (std::int64_t i = 0; i < query.tiles(); ++i) {
          Vector d_oc(static_cast<std::size_t>(d));
          query.for_each_token(b, i, [&](std::int64_t token) {
            for (std::int64_t e = 0; e < d; ++e) {
              d_oc[static_cast<std::size_t>(e)] +=
                  number(c.args.dout, b, token, h, e) * c.gate(b, token, h, e);
            }
          });
          expect_row("d_oc", row(parts.d_oc, b, h, i), d_oc, 1e-5);
          Vector dqc(static_cast<std::size_t>(d));
          double dqc_scale = 1e-30;
          const double sum = number(c.args.coarse_sum, b, h, i, 0);
          const auto count = static_cast<double>(query.valid(b, i));
          if (sum != 0 && count > 0) {
            const float* given = row(parts.d_oc, b, h, i);
            const float* qc = row(parts.pool.qc, b, h, i);
            const double inner =
                dot(given, static_cast<const float*>(c.args.oc.data) + c.args.oc.offset(b, h, i));
            for (std::int64_t j = 0; j < key.tiles(); ++j) {
              if (key.valid(b, j) == 0) continue;
              const float* kc = row(parts.pool.kc, b, g, j);
              const double weight =
                  std::exp(dot(qc, kc) * scale - number(c.args.coarse_max, b, h, i, 0)) / sum;
              const double d_weight = dot(given, row(parts.pool.vc, b, g, j));
              const double d_score = scale * weight * (d_weight - inner);
              const double summands =
                  std::abs(scale) * weight * (std::abs(d_weight) + std::abs(inner));
              for (std::int64_t e = 0; e < d; ++e) {
                const auto at = static_cast<std::size_t>(e);
                dqc[at] += d_score * double{kc[e]} / count;
                dqc_scale = std::max(dqc_scale, summands * std::abs(kc[e]) / count);
                d_score_scale = std::max(d_score_scale, summands * std::abs(qc[e]));
                dkc[static_cast<std::size_t>(j)][at] += d_score * double{qc[e]};
                dvc[static_cast<std::size_t>(j)][at] += weight * double{given[e]};
              }
            }
          }
          expect_row("dqc", row(parts.dqc, b, h, i), dqc, 1e-4, dqc_scale);
        }
      }
      for (std::int64_t j = 0; j < key.tiles(); ++j) {
        const double share = 1.0 / std::max<double>(1, static_cast<double>(key.valid(b, j)));
        for (std::vector<Vector>* all : {&dkc, &dvc}) {
          for (double& value : (*all)[static_cast<std::size_t>(j)]) value *= share;
        }
        expect_row("dkc", row(parts.dkc, b, g, j), dkc[static_cast<std::size_t>(j)], 1e-4,
                   d_score_scale * share);
        expect_row("dvc", row(parts.dvc, b, g, j), dvc[static_cast<std::size_t>(j)], 1e-4);
      }
    }
  }
}

TEST_P(CudaBackward, FirstStepsOfRandomProblems) {
  const std::uint64_t seed = test_seed();
  const std::int64_t count = test_problems(80);
  for (std::int64_t n = 0, drawn = 0; drawn < count; ++n) {
    const auto problem = random_problem(seed + static_cast<std::uint64_t>(n), {.gpu = true});
    if (problem->use != Use::whole) continue;
    ++drawn;
    SCOPED_TRACE(problem->to_string());
    Case c(*problem);
    const RandomProblem& r = c.r;
    const core::Setting setting{r.problem(), r.setting.query, r.setting.key, kGpu, {}};
    const cuda::Context context(setting);
    cuda::prepare_coarse_backward(context);

    core::Arena counted(nullptr);
    take_backward_parts(counted, context, c.args);
    Poisoned workspace(counted.used());
    std::byte* host = workspace.give_bytes(counted.used());
    DeviceMemory memory(kGpu);
    for (const PoisonedTensor* input : {&r.q, &r.k, &r.v, &r.gate_tensor, &r.dout, &r.dlse}) {
      memory.add(input->memory.storage().data(), input->memory.storage().size());
    }
    for (const auto* lengths : {&r.query_lengths, &r.key_lengths}) {
      memory.add(lengths->data(), lengths->size() * sizeof(std::int32_t));
    }
    for (const auto& [name, output] : c.results.memory()) {
      memory.add_written(output->storage().data(), output->storage().size());
    }
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
    begin_backward(context, args, given, nullptr);
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
    expect_rows(c, context, parts);
    if (!r.gate.is_none()) expect_coarse(c, context, parts);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaBackward, ::testing::Values("sm90"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
