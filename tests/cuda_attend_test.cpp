// attend and its backward on a GPU at sizes where every block works on many items: too large for
// the reference, judged on sampled rows in fp64.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "device/device_memory.hpp"
#include "reference/rows.hpp"
#include "support/gpu_test.hpp"
#include "support/poisoned.hpp"
#include "support/random_problem.hpp"

namespace vidsparse::testing {
namespace {

using tools::DeviceMemory;

class CudaAttend : public GpuTest {};

struct Large {
  Problem problem;
  double density = 0.1;  ///< of the mask
  double common = 0;     ///< share of it that 12 neighbouring query tiles agree on
  bool with_lengths = false;
};

/// [B, S, H, D] filled with normal numbers, but for NaN in pad slots. `lengths`: of packed tiles,
/// [B, tiles]; may be empty.
PoisonedTensor normal_rows(std::mt19937_64& engine, const Problem& problem,
                           const TileLayout& layout, std::int64_t heads,
                           const std::vector<std::int32_t>& lengths) {
  PoisonedTensor tensor(problem.dtype, 4,
                        {problem.batch, layout.tokens(), heads, problem.head_dim});
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<std::size_t>(problem.head_dim));
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int32_t* of_batch = lengths.empty() ? nullptr : &lengths[b * layout.tiles()];
    for (std::int64_t j = 0; j < layout.tiles(); ++j) {
      const Tile tile = layout.tile(j);
      tile.for_each_run(layout.valid(tile, j, of_batch), [&](auto first, auto count, auto) {
        for (std::int64_t token = first; token < first + count; ++token) {
          for (std::int64_t h = 0; h < heads; ++h) {
            for (float& value : row) value = normal(engine);
            reference::store_row(tensor.ref, b, token, h, row.data());
          }
        }
      });
    }
  }
  return tensor;
}

/// The first `text` tiles attend to everything, and everything to them.
TileMask random_mask(std::mt19937_64& engine, const Large& large, const MaskShape& shape,
                     std::int64_t text) {
  TileMask mask(shape);
  std::uniform_real_distribution<double> uniform;
  std::vector<bool> shared(static_cast<std::size_t>(shape.key_tiles));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t i = 0; i < shape.query_tiles; ++i) {
        for (std::int64_t j = 0; j < shape.key_tiles; ++j) {
          const auto at = static_cast<std::size_t>(j);
          if (i % 12 == 0) shared[at] = uniform(engine) < large.density * large.common;
          const bool own = uniform(engine) < large.density * (1 - large.common);
          if (own || shared[at] || i < text || j < text) mask.set(b, h, i, j);
        }
      }
    }
  }
  return mask;
}

/// A row that is a sum of rows with weights, and the spread that rounds a weight at a time.
class Sum {
 public:
  explicit Sum(std::int64_t d) : sums_(static_cast<std::size_t>(d)), squares_(sums_) {}

  void add(double weight, const std::vector<double>& row) {
    for (std::size_t e = 0; e < row.size(); ++e) {
      sums_[e] += weight * row[e];
      squares_[e] += weight * row[e] * weight * row[e];
    }
  }

  void expect(const char* what, const TensorView& tensor, std::int64_t b, std::int64_t token,
              std::int64_t h, double factor) const {
    const double rounding = tensor.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
    std::vector<double> row(sums_.size());
    reference::load_row(tensor, b, token, h, row.data());
    for (std::size_t e = 0; e < row.size(); ++e) {
      const double exact = sums_[e] * factor;
      const double spread = std::sqrt(squares_[e]) * std::abs(factor);
      ASSERT_NEAR(row[e], exact, rounding * (std::abs(exact) + 4 * spread))
          << what << ", row " << b << ", " << h << ", " << token << ", " << e;
    }
  }

 private:
  std::vector<double> sums_;
  std::vector<double> squares_;
};

double dot(const std::vector<double>& x, const std::vector<double>& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

/// Attention over a random mask and its gradients.
class LargeRun {
 public:
  LargeRun(const std::string& backend, const Large& large, std::uint64_t seed)
      : problem_(large.problem),
        engine_(seed),
        plan_(problem_, {kGpu, backend, {}}),
        lengths_(random_lengths(large)),
        q_(normal_rows(engine_, problem_, plan_.query_layout(), problem_.heads_q, {})),
        k_(normal_rows(engine_, problem_, plan_.key_layout(), problem_.key_heads(), lengths_)),
        v_(normal_rows(engine_, problem_, plan_.key_layout(), problem_.key_heads(), lengths_)),
        dout_(normal_rows(engine_, problem_, plan_.query_layout(), problem_.heads_q, {})),
        out_(like(q_)),
        dq_(like(q_)),
        dk_(like(k_)),
        dv_(like(k_)),
        lse_(DType::f32, 3, {problem_.batch, problem_.heads_q, plan_.query_layout().tokens()}),
        mask_(random_mask(engine_, large, plan_.mask_shape(), plan_.query_layout().plain_tiles())) {
  }

  void run() {
    DeviceMemory memory(kGpu);
    for (const PoisonedTensor* tensor : {&q_, &k_, &v_, &dout_}) {
      memory.add(tensor->memory.storage().data(), tensor->memory.storage().size());
    }
    const std::vector<PoisonedTensor*> outputs = {&out_, &lse_, &dq_, &dk_, &dv_};
    for (PoisonedTensor* output : outputs) {
      memory.add_written(output->memory.storage().data(), output->memory.storage().size());
    }
    memory.add(lengths_.data(), lengths_.size() * sizeof(std::int32_t));
    memory.add(mask_.view().words, static_cast<std::size_t>(mask_.shape().words()) * 8);
    AttendArgs attend;
    attend.q = memory.at(q_.ref);
    attend.k = memory.at(k_.ref);
    attend.v = memory.at(v_.ref);
    attend.mask = memory.at(mask_.view());
    if (!lengths_.empty()) {
      attend.lengths.key = memory.at(TensorView::dense(
          lengths_.data(), DType::i32, 2, {problem_.batch, plan_.key_layout().tiles()}));
    }
    attend.out = memory.at(out_.ref);
    attend.lse = memory.at(lse_.ref);
    BackwardArgs backward;
    backward.q = attend.q;
    backward.k = attend.k;
    backward.v = attend.v;
    backward.lengths = attend.lengths;
    backward.mask = attend.mask;
    backward.out = attend.out;
    backward.lse = attend.lse;
    backward.dout = memory.at(dout_.ref);
    backward.dq = memory.at(dq_.ref);
    backward.dk = memory.at(dk_.ref);
    backward.dv = memory.at(dv_.ref);
    const std::size_t bytes =
        std::max(plan_.workspace_bytes(attend), plan_.workspace_bytes(backward));
    Poisoned workspace(bytes);
    std::byte* scratch = workspace.give_bytes(bytes);
    memory.add_written(workspace.storage().data(), workspace.storage().size());
    plan_.attend(attend, {memory.at(scratch), plan_.workspace_bytes(attend)});
    plan_.backward(backward, {memory.at(scratch), plan_.workspace_bytes(backward)});
    memory.fetch();
    for (const PoisonedTensor* output : outputs) EXPECT_TRUE(output->memory.intact());
    EXPECT_TRUE(workspace.intact());
  }

  /// Whether all of the outputs has been written; of packed keys pads may be left.
  void judge_written() {
    std::vector<double> values(static_cast<std::size_t>(problem_.head_dim));
    for (const PoisonedTensor* output : {&out_, &dq_, &dk_, &dv_}) {
      if (!lengths_.empty() && (output == &dk_ || output == &dv_)) continue;
      const TensorView& tensor = output->ref;
      for (std::int64_t b = 0; b < tensor.shape[0]; ++b) {
        for (std::int64_t token = 0; token < tensor.shape[1]; ++token) {
          for (std::int64_t h = 0; h < tensor.shape[2]; ++h) {
            reference::load_row(tensor, b, token, h, values.data());
            ASSERT_TRUE(std::none_of(values.begin(), values.end(),
                                     [](double value) { return std::isnan(value); }))
                << "row " << b << ", " << h << ", " << token;
          }
        }
      }
    }
  }

  /// Once more, for the same bits.
  void run_again() {
    const auto bytes = [&] {
      std::vector<std::vector<std::byte>> all;
      for (PoisonedTensor* output : {&out_, &lse_, &dq_, &dk_, &dv_}) {
        const auto& storage = output->memory.storage();
        all.emplace_back(storage.begin(), storage.end());
      }
      return all;
    };
    const auto before = bytes();
    run();
    EXPECT_TRUE(bytes() == before);
  }

  /// out, lse and dq of some query tokens.
  void judge_queries(int count) {
    for (; count > 0; --count) {
      const std::int64_t b = below(problem_.batch);
      const std::int64_t h = below(problem_.heads_q);
      const auto [i, token] = token_of(plan_.query_layout(), nullptr);
      const std::vector<double> query = row(q_, b, token, h);
      const std::vector<double> given = row(dout_, b, token, h);
      const double delta = dot(given, row(out_, b, token, h));
      double total = 0;
      Sum out(problem_.head_dim);
      Sum dq(problem_.head_dim);
      for_each_set(mask_.view().row(b, h, i), mask_.shape().row_words(), [&](std::int64_t j) {
        for_each_token(plan_.key_layout(), j, lengths_of(b), [&](std::int64_t other) {
          const std::vector<double> key = row(k_, b, other, h / group());
          const std::vector<double> value = row(v_, b, other, h / group());
          const double weight = std::exp(dot(query, key) * scale());
          total += weight;
          out.add(weight, value);
          dq.add(weight * (dot(given, value) - delta) * scale(), key);
        });
      });
      const double lse = number(lse_, b, h, token);
      if (total == 0) {
        ASSERT_EQ(lse, -std::numeric_limits<double>::infinity());
      } else {
        ASSERT_NEAR(lse, std::log(total), 1e-4) << "row " << b << ", " << h << ", " << token;
      }
      out.expect("out", out_.ref, b, token, h, total == 0 ? 0 : 1 / total);
      dq.expect("dq", dq_.ref, b, token, h, total == 0 ? 0 : 1 / total);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

  /// dk and dv of some key tokens, by the lse and out that were judged.
  void judge_keys(int count) {
    const TileLayout& query = plan_.query_layout();
    for (; count > 0; --count) {
      const std::int64_t b = below(problem_.batch);
      const std::int64_t g = below(problem_.key_heads());
      const auto [j, token] = token_of(plan_.key_layout(), lengths_of(b));
      const std::vector<double> key = row(k_, b, token, g);
      const std::vector<double> value = row(v_, b, token, g);
      Sum dk(problem_.head_dim);
      Sum dv(problem_.head_dim);
      for (std::int64_t h = g * group(); h < (g + 1) * group(); ++h) {
        for (std::int64_t i = 0; i < query.tiles(); ++i) {
          if (!mask_.view().test(b, h, i, j)) continue;
          for_each_token(query, i, nullptr, [&](std::int64_t other) {
            const std::vector<double> asked = row(q_, b, other, h);
            const std::vector<double> given = row(dout_, b, other, h);
            const double weight = std::exp(dot(asked, key) * scale() - number(lse_, b, h, other));
            const double delta = dot(given, row(out_, b, other, h));
            dv.add(weight, given);
            dk.add(weight * (dot(given, value) - delta) * scale(), asked);
          });
        }
      }
      dk.expect("dk", dk_.ref, b, token, g, 1);
      dv.expect("dv", dv_.ref, b, token, g, 1);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  static PoisonedTensor like(const PoisonedTensor& other) {
    return PoisonedTensor(other.ref.dtype, 4, other.ref.shape);
  }

  std::vector<std::int32_t> random_lengths(const Large& large) {
    std::vector<std::int32_t> lengths;
    const std::int64_t count = large.with_lengths ? problem_.batch * plan_.key_layout().tiles() : 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t most = engine_() % 2 == 0 ? 20 : 70;
      lengths.push_back(static_cast<std::int32_t>(engine_() % most) - 3);
    }
    return lengths;
  }

  std::int64_t below(std::int64_t most) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(most));
  }
  std::int64_t group() const { return problem_.heads_q / problem_.key_heads(); }
  double scale() const { return 1 / std::sqrt(static_cast<double>(problem_.head_dim)); }
  const std::int32_t* lengths_of(std::int64_t b) const {
    return lengths_.empty() ? nullptr : lengths_.data() + b * plan_.key_layout().tiles();
  }

  std::vector<double> row(const PoisonedTensor& tensor, std::int64_t b, std::int64_t token,
                          std::int64_t h) const {
    std::vector<double> result(static_cast<std::size_t>(problem_.head_dim));
    reference::load_row(tensor.ref, b, token, h, result.data());
    return result;
  }
  static double number(const PoisonedTensor& tensor, std::int64_t b, std::int64_t h,
                       std::int64_t token) {
    return reference::load<double>(tensor.ref, tensor.ref.offset(b, h, token));
  }

  template <class Visit>
  static void for_each_token(const TileLayout& layout, std::int64_t j, const std::int32_t* lengths,
                             Visit&& visit) {
    const Tile tile = layout.tile(j);
    tile.for_each_run(layout.valid(tile, j, lengths), [&](auto first, auto count, auto) {
      for (std::int64_t token = first; token < first + count; ++token) visit(token);
    });
  }

  /// A tile with tokens, and one of them.
  std::pair<std::int64_t, std::int64_t> token_of(const TileLayout& layout,
                                                 const std::int32_t* lengths) {
    std::vector<std::int64_t> tokens;
    std::int64_t tile = 0;
    while (tokens.empty()) {
      tile = below(layout.tiles());
      for_each_token(layout, tile, lengths, [&](std::int64_t token) { tokens.push_back(token); });
    }
    return {tile, tokens[static_cast<std::size_t>(below(std::ssize(tokens)))]};
  }

  Problem problem_;
  std::mt19937_64 engine_;
  Plan plan_;
  std::vector<std::int32_t> lengths_;  ///< of packed keys, [B, tiles]; may be empty
  PoisonedTensor q_, k_, v_, dout_, out_, dq_, dk_, dv_, lse_;
  TileMask mask_;
};

void judge_large(const std::string& backend, const Large& large, std::uint64_t seed) {
  SCOPED_TRACE("seed " + std::to_string(seed) + ", " + large.problem.key_sequence().to_string());
  LargeRun run(backend, large, seed);
  run.run();
  run.judge_written();
  run.run_again();
  run.judge_queries(64);
  run.judge_keys(32);
}

TEST_P(CudaAttend, LargeVideosWithShortEdges) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::bf16;
  large.problem.heads_q = 2;
  large.problem.query = Sequence{Video{21, 29, 42}};  // 1 of 4, 1 of 4, 2 of 4
  judge_large(GetParam(), large, seed);
  large.common = 0.75;
  judge_large(GetParam(), large, seed + 1);
  large.common = 0;
  large.density = 0.5;
  judge_large(GetParam(), large, seed + 2);
  large.density = 0.2;
  large.problem.dtype = DType::f16;
  large.problem.head_dim = 64;
  large.problem.heads_kv = 1;
  large.problem.query = Sequence::grid({17, 30, 40}, {20, 40});  // 1 of 4, 2 of 4
  judge_large(GetParam(), large, seed + 3);
  large.problem.query = Sequence{Video{18, 31, 43}, Video{8, 21, 30}};
  judge_large(GetParam(), large, seed + 4);
  large.problem.query = Sequence{Video{18, 32, 40}};  // 2 of 4 alone
  judge_large(GetParam(), large, seed + 5);
}

// Lists of text are many times as long as others, so blocks take unequally many items.
TEST_P(CudaAttend, LargeProblemsWithText) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::bf16;
  large.problem.batch = 2;
  large.problem.heads_q = 4;
  large.problem.heads_kv = 2;
  large.problem.query = Sequence::grid({20, 30, 44}, {300, 120});
  judge_large(GetParam(), large, seed);
  large.problem.head_dim = 64;
  large.problem.tile = {4, 8, 4};
  large.problem.query = Sequence::grid({20, 30, 44}, {700});
  judge_large(GetParam(), large, seed + 1);
  large.problem.query = Sequence({Video{20, 30, 44}, Plain{300}, Plain{120}});
  judge_large(GetParam(), large, seed + 2);
  large.problem.head_dim = 128;
  large.problem.query =
      Sequence({Plain{77}, Video{9, 30, 44}, Plain{30}, Video{9, 8, 8}, Plain{500}});
  judge_large(GetParam(), large, seed + 3);
}

// K and V of a head are more than an H200's L2 holds, so blocks keep pace.
TEST_P(CudaAttend, LargerThanCaches) {
  Large large;
  large.problem.dtype = DType::bf16;
  large.problem.heads_q = 1;
  large.density = 0.05;
  large.problem.query = Sequence{Video{64, 44, 48}};
  judge_large(GetParam(), large, test_seed());
}

TEST_P(CudaAttend, LargePackedProblems) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::bf16;
  large.problem.batch = 2;
  large.problem.heads_q = 2;
  large.problem.query = Sequence{Video{16, 32, 40}};
  large.problem.key = Packed{700, 64};
  large.with_lengths = true;
  judge_large(GetParam(), large, seed);
  large.common = 0.75;
  large.problem.head_dim = 64;
  judge_large(GetParam(), large, seed + 1);
}

INSTANTIATE_TEST_SUITE_P(All, CudaAttend, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
