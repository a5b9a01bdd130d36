// attend on a GPU at sizes where every block works on many items: too large for the reference,
// judged on sampled rows in fp64.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
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

TileMask random_mask(std::mt19937_64& engine, const Large& large, const MaskShape& shape) {
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
          if (own || shared[at]) mask.set(b, h, i, j);
        }
      }
    }
  }
  return mask;
}

/// Runs attend over a random mask and judges some of its rows.
void judge_large(const std::string& backend, const Large& large, std::uint64_t seed) {
  const Problem& problem = large.problem;
  SCOPED_TRACE("seed " + std::to_string(seed) + ", " + problem.key_sequence().to_string());
  std::mt19937_64 engine(seed);
  const Plan plan(problem, {kGpu, backend, {}});
  const TileLayout& key = plan.key_layout();
  const std::int64_t d = problem.head_dim;
  std::vector<std::int32_t> lengths;
  if (large.with_lengths) {
    for (std::int64_t i = 0; i < problem.batch * key.tiles(); ++i) {
      const std::int32_t most = engine() % 2 == 0 ? 20 : 70;
      lengths.push_back(static_cast<std::int32_t>(engine() % most) - 3);
    }
  }
  const PoisonedTensor q = normal_rows(engine, problem, plan.query_layout(), problem.heads_q, {});
  const PoisonedTensor k = normal_rows(engine, problem, key, problem.key_heads(), lengths);
  const PoisonedTensor v = normal_rows(engine, problem, key, problem.key_heads(), lengths);
  const std::int64_t queries = plan.query_layout().tokens();
  PoisonedTensor out(problem.dtype, 4, {problem.batch, queries, problem.heads_q, d});
  PoisonedTensor lse(DType::f32, 3, {problem.batch, problem.heads_q, queries});
  const TileMask mask = random_mask(engine, large, plan.mask_shape());

  DeviceMemory memory(kGpu);
  for (const PoisonedTensor* tensor : {&q, &k, &v}) {
    memory.add(tensor->memory.storage().data(), tensor->memory.storage().size());
  }
  for (PoisonedTensor* output : {&out, &lse}) {
    memory.add_written(output->memory.storage().data(), output->memory.storage().size());
  }
  memory.add(lengths.data(), lengths.size() * sizeof(std::int32_t));
  memory.add(mask.view().words, static_cast<std::size_t>(mask.shape().words()) * 8);
  AttendArgs args;
  args.q = memory.at(q.ref);
  args.k = memory.at(k.ref);
  args.v = memory.at(v.ref);
  args.mask = memory.at(mask.view());
  if (large.with_lengths) {
    args.lengths.key =
        memory.at(TensorView::dense(lengths.data(), DType::i32, 2, {problem.batch, key.tiles()}));
  }
  args.out = memory.at(out.ref);
  args.lse = memory.at(lse.ref);
  const std::size_t bytes = plan.workspace_bytes(args);
  Poisoned workspace(bytes);
  std::byte* scratch = workspace.give_bytes(bytes);
  memory.add_written(workspace.storage().data(), workspace.storage().size());
  plan.attend(args, {memory.at(scratch), bytes});
  memory.fetch();
  for (const Poisoned* output : {&out.memory, &lse.memory, &workspace}) {
    EXPECT_TRUE(output->intact());
  }

  const std::int64_t group = problem.heads_q / problem.key_heads();
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const double rounding = problem.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  const auto at = [](std::int64_t index) { return static_cast<std::size_t>(index); };
  std::vector<double> query(at(d));
  std::vector<double> row(at(d));
  for (int n = 0; n < 64; ++n) {
    const auto below = [&](std::int64_t most) {
      return static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(most));
    };
    const std::int64_t b = below(problem.batch);
    const std::int64_t h = below(problem.heads_q);
    const std::int64_t i = below(plan.query_layout().tiles());
    const Tile tile = plan.query_layout().tile(i);
    const std::int64_t token = tile.first_token + below(tile.extent[0]) * tile.stride_t +
                               below(tile.extent[1]) * tile.stride_h + below(tile.extent[2]);
    reference::load_row(q.ref, b, token, h, query.data());
    // Sums of weights, of weighted values and of their squares: by these rounding is bounded.
    double total = 0;
    std::vector<double> sums(at(d));
    std::vector<double> squares(at(d));
    for_each_set(mask.view().row(b, h, i), mask.shape().row_words(), [&](std::int64_t j) {
      const Tile keys = key.tile(j);
      const std::int32_t* of_batch = lengths.empty() ? nullptr : &lengths[at(b * key.tiles())];
      keys.for_each_run(key.valid(keys, j, of_batch), [&](auto first, auto count, auto) {
        for (std::int64_t other = first; other < first + count; ++other) {
          reference::load_row(k.ref, b, other, h / group, row.data());
          double score = 0;
          for (std::size_t e = 0; e < row.size(); ++e) score += query[e] * row[e];
          const double weight = std::exp(score * scale);
          total += weight;
          reference::load_row(v.ref, b, other, h / group, row.data());
          for (std::size_t e = 0; e < row.size(); ++e) {
            sums[e] += weight * row[e];
            squares[e] += weight * row[e] * weight * row[e];
          }
        }
      });
    });
    const auto got_lse = reference::load<double>(lse.ref, lse.ref.offset(b, h, token));
    reference::load_row(out.ref, b, token, h, row.data());
    if (total == 0) {
      ASSERT_EQ(got_lse, -std::numeric_limits<double>::infinity());
      for (const double element : row) ASSERT_EQ(element, 0);
      continue;
    }
    ASSERT_NEAR(got_lse, std::log(total), 1e-4) << "row " << b << ", " << h << ", " << token;
    for (std::size_t e = 0; e < row.size(); ++e) {
      const double exact = sums[e] / total;
      const double spread = std::sqrt(squares[e]) / total;
      ASSERT_NEAR(row[e], exact, rounding * (std::abs(exact) + 4 * spread))
          << "row " << b << ", " << h << ", " << token << ", " << e;
    }
  }
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
