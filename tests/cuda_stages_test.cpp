// pool and select on a GPU, alone: random problems with pooled tensors of any strides, and sizes
// too large for the reference, judged on sampled rows in fp64.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda/common/select_config.hpp"
#include "device/device_memory.hpp"
#include "reference/check.hpp"
#include "reference/side.hpp"
#include "support/backend_run.hpp"
#include "support/environment.hpp"
#include "support/gpu_test.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::testing {
namespace {

using tools::DeviceMemory;

using reference::judge_close;
using reference::Report;

class CudaStages : public GpuTest {};

/// Makes select of plans that are made meanwhile use a block of that many rows and threads.
Environment forced_block(const cuda::SelectBlock& block) {
  return {"VIDSPARSE_SELECT_BLOCK",
          std::to_string(block.rows) + "x" + std::to_string(block.threads)};
}

/// One of the blocks for a head_dim, in turn.
const cuda::SelectBlock& block_of_turn(std::int64_t head_dim, std::int64_t turn) {
  const auto blocks = cuda::select_blocks(static_cast<int>(head_dim));
  return blocks[static_cast<std::size_t>(turn) % blocks.size()];
}

/// Whether the block that is forced has room for the problem's rows on this device.
bool forced_block_fits(const Problem& problem, const std::string& backend) {
  try {
    const Plan plan(problem, {kGpu, backend, {}});
    return true;
  } catch (const Error& error) {
    if (error.argument() != "VIDSPARSE_SELECT_BLOCK") throw;
    return false;
  }
}

/// A tensor filled with normal numbers.
PoisonedTensor normal_tensor(std::mt19937_64& engine, const std::array<std::int64_t, 4>& shape,
                             const std::array<std::int64_t, 4>& strides, std::int64_t first) {
  PoisonedTensor tensor(DType::f32, 4, shape, strides, first);
  std::normal_distribution<float> normal;
  auto* data = static_cast<float*>(tensor.ref.data);
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    for (std::int64_t h = 0; h < shape[1]; ++h) {
      for (std::int64_t n = 0; n < shape[2]; ++n) {
        for (std::int64_t d = 0; d < shape[3]; ++d) {
          data[tensor.ref.offset(b, h, n) + d] = normal(engine);
        }
      }
    }
  }
  return tensor;
}

struct Large {
  Problem problem;
  Selection selection;
  bool coarse = true;
  bool with_lengths = false;
};

/// Runs select on random pooled tensors and judges `samples` of its rows, each as a problem of one
/// query tile of its own.
void judge_large(const std::string& backend, const Large& large, std::uint64_t seed, int samples) {
  SCOPED_TRACE("seed " + std::to_string(seed) + ", " + large.problem.query.to_string());
  std::mt19937_64 engine(seed);
  const Problem& problem = large.problem;
  const Plan plan(problem, {kGpu, backend, {}});
  const std::int64_t query_tiles = plan.query_layout().tiles();
  const std::int64_t key_tiles = plan.key_layout().tiles();
  const std::int64_t d = problem.head_dim;
  const std::array<std::int64_t, 4> query = {problem.batch, problem.heads_q, query_tiles, d};
  const std::array<std::int64_t, 4> key = {problem.batch, problem.key_heads(), key_tiles, d};
  const auto dense = [](const std::array<std::int64_t, 4>& shape) {
    return TensorRef::dense(nullptr, DType::f32, 4, shape).strides;
  };
  PoisonedTensor qc = normal_tensor(engine, query, dense(query), 0);
  PoisonedTensor kc = normal_tensor(engine, key, dense(key), 0);
  PoisonedTensor vc = normal_tensor(engine, key, dense(key), 0);
  PoisonedTensor oc(DType::f32, 4, query);
  PoisonedTensor max(DType::f32, 3, {query[0], query[1], query[2]});
  PoisonedTensor sum(DType::f32, 3, {query[0], query[1], query[2]});
  const auto bytes = static_cast<std::size_t>(plan.mask_shape().words()) * 8;
  Poisoned mask_memory(bytes);
  const TileMaskRef mask(reinterpret_cast<std::uint64_t*>(mask_memory.give_bytes(bytes)),
                         plan.mask_shape());
  std::vector<std::int32_t> lengths;
  Lengths on_host;
  if (large.with_lengths) {
    const std::int64_t columns = plan.key_layout().length_columns();
    for (std::int64_t i = 0; i < problem.batch * columns; ++i) {
      lengths.push_back(static_cast<std::int32_t>(engine() % 80) - 8);
    }
    on_host.key = TensorView::dense(lengths.data(), DType::i32, 2, {problem.batch, columns});
  }

  SelectArgs args;
  DeviceMemory memory(kGpu);
  for (PoisonedTensor* tensor : {&qc, &kc, &vc}) {
    memory.add(tensor->memory.storage().data(), tensor->memory.storage().size());
  }
  for (Poisoned* output : {&oc.memory, &max.memory, &sum.memory, &mask_memory}) {
    memory.add_written(output->storage().data(), output->storage().size());
  }
  memory.add(lengths.data(), lengths.size() * sizeof(std::int32_t));
  args.qc = memory.at(qc.ref);
  args.kc = memory.at(kc.ref);
  args.lengths.key = memory.at(on_host.key);
  args.selection = large.selection;
  args.mask = memory.at(mask);
  if (large.coarse) {
    args.vc = memory.at(vc.ref);
    args.oc = memory.at(oc.ref);
    args.coarse_max = memory.at(max.ref);
    args.coarse_sum = memory.at(sum.ref);
  }
  const std::size_t workspace_bytes = plan.workspace_bytes(args);
  Poisoned workspace(workspace_bytes);
  std::byte* scratch = workspace.give_bytes(workspace_bytes);
  memory.add_written(workspace.storage().data(), workspace.storage().size());
  plan.select(args, {memory.at(scratch), workspace_bytes});
  memory.fetch();
  for (Poisoned* output : {&oc.memory, &max.memory, &sum.memory, &mask_memory, &workspace}) {
    EXPECT_TRUE(output->intact());
  }

  const Sequence one_tile{Video{problem.tile.t, problem.tile.h, problem.tile.w}};
  const TileLayout row_layout(one_tile, problem.tile);
  for (int n = 0; n < samples; ++n) {
    const auto b = static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(query[0]));
    const auto h = static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(query[1]));
    // Borders of the kernel's strips are the likely places of mistakes.
    const std::int64_t i =
        n == 0   ? 0
        : n == 1 ? query_tiles - 1
                 : static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(query_tiles));
    const std::int64_t g = h / (problem.heads_q / problem.key_heads());
    Problem one = problem;
    one.query = one_tile;
    one.key = problem.key_sequence();
    one.batch = one.heads_q = one.heads_kv = 1;
    const core::Setting setting{one, row_layout, plan.key_layout(), Device{}, {}};
    const auto part = [&](const PoisonedTensor& whole, std::int64_t head, std::int64_t first,
                          std::int64_t rows) {
      const auto* data = static_cast<const float*>(whole.ref.data);
      return TensorView::dense(data + whole.ref.offset(b, head, first), DType::f32, 4,
                               {1, 1, rows, d});
    };
    Lengths row_lengths;
    if (large.with_lengths) {
      const std::int64_t columns = plan.key_layout().length_columns();
      row_lengths.key = TensorView::dense(lengths.data() + b * columns, DType::i32, 1, {columns});
    }
    const reference::ScoreInputs scores{part(qc, h, i, 1), part(kc, g, 0, key_tiles), row_lengths,
                                        std::nullopt};
    const TileMaskView row(mask.row(b, h, i), {1, 1, 1, key_tiles});
    const Report selected = judge_selection(setting, scores, large.selection, row);
    EXPECT_TRUE(selected.ok) << selected.to_string() << " row " << b << ", " << h << ", " << i;
    if (!large.coarse) continue;
    const auto number = [&](const PoisonedTensor& whole) {
      const auto* data = static_cast<const float*>(whole.ref.data);
      return TensorView::dense(data + whole.ref.offset(b, h) + i, DType::f32, 3, {1, 1, 1});
    };
    const Report rows = judge_coarse_rows(setting, scores, number(max), number(sum));
    EXPECT_TRUE(rows.ok) << rows.to_string();

    // oc against fp64.
    const reference::Side side(plan.key_layout(), row_lengths.key);
    std::vector<double> weights(static_cast<std::size_t>(key_tiles));
    std::vector<double> exact(static_cast<std::size_t>(d));
    const auto* q = static_cast<const float*>(scores.qc.data);
    const auto* k = static_cast<const float*>(scores.kc.data);
    const auto* v = static_cast<const float*>(part(vc, g, 0, key_tiles).data);
    double highest = -HUGE_VAL;
    for (std::int64_t j = 0; j < key_tiles; ++j) {
      double s = 0;
      for (std::int64_t e = 0; e < d; ++e) s += double{q[e]} * double{k[j * d + e]};
      const bool empty = side.valid(0, j) == 0;
      weights[static_cast<std::size_t>(j)] = empty ? -HUGE_VAL : s / std::sqrt(double(d));
      highest = std::max(highest, weights[static_cast<std::size_t>(j)]);
    }
    double total = 0;
    for (std::int64_t j = 0; j < key_tiles; ++j) {
      const double weight = std::exp(weights[static_cast<std::size_t>(j)] - highest);
      total += weight;
      if (weight == 0) continue;
      for (std::int64_t e = 0; e < d; ++e) {
        exact[static_cast<std::size_t>(e)] += weight * double{v[j * d + e]};
      }
    }
    double largest = 0;
    double worst = 0;
    for (std::int64_t e = 0; e < d; ++e) {
      const double value = exact[static_cast<std::size_t>(e)] / total;
      largest = std::max(largest, std::abs(value));
      const double got = static_cast<const float*>(oc.ref.data)[oc.ref.offset(b, h, i) + e];
      const double error = std::abs(got - value);
      worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
    }
    EXPECT_LE(worst, reference::kCoarseTolerance * largest)
        << "oc of row " << b << ", " << h << ", " << i;
  }
}

TEST_P(CudaStages, SelectOfLargeProblems) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::bf16;
  large.selection.sparsity = 0.9;
  // wan14b-720p: score rows of 1440 tiles.
  large.problem.query = Sequence{Video{21, 45, 80}};
  large.problem.heads_q = 40;
  judge_large(GetParam(), large, seed, 24);
  // Sixteen rows a block.
  large.problem.query = Sequence{Video{32, 48, 80}};
  large.problem.key = Sequence::grid({32, 48, 80}, {300});
  large.problem.heads_q = 2;
  large.selection.prefix_mode = PrefixMode::compete;
  judge_large(GetParam(), large, seed + 1, 24);
  large.selection.prefix_mode = PrefixMode::exempt;
  large.coarse = false;
  judge_large(GetParam(), large, seed + 2, 24);
  // Rows of 1440 tiles at the other head_dim.
  large.coarse = true;
  large.problem.head_dim = 64;
  large.problem.query = Sequence{Video{21, 45, 80}};
  large.problem.key.reset();
  judge_large(GetParam(), large, seed + 3, 24);
}

/// Strips that are full and ones that are not, score rows of whole words of a bitmap and others,
/// few keys and as many as a row looks at in registers or more.
TEST_P(CudaStages, SelectWithEveryBlock) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::bf16;
  large.selection.sparsity = 0.8;
  large.problem.heads_q = 4;
  large.problem.heads_kv = 2;
  large.problem.batch = 2;
  for (const int head_dim : {64, 128}) {
    large.problem.head_dim = head_dim;
    for (const cuda::SelectBlock& block : cuda::select_blocks(head_dim)) {
      SCOPED_TRACE(std::to_string(block.rows) + " x " + std::to_string(block.threads) +
                   ", head_dim " + std::to_string(head_dim));
      const Environment forced = forced_block(block);
      large.problem.query = Sequence{Video{20, 20, 24}};  // 150 tiles
      large.problem.key = Packed{190, 64};
      large.with_lengths = true;
      judge_large(GetParam(), large, seed, 16);
      large.problem.query = Sequence{Video{16, 32, 24}};  // 192 tiles
      large.problem.key = Sequence::grid({16, 16, 16}, {20});
      large.with_lengths = false;
      judge_large(GetParam(), large, seed + 1, 16);
      for (const std::int64_t tiles : {1, 700, 1040}) {
        large.problem.key = Packed{tiles, 64};
        if (forced_block_fits(large.problem, GetParam())) {
          judge_large(GetParam(), large, seed + 2, 8);
        }
      }
    }
  }
}

TEST_P(CudaStages, SelectOfRowsThatOutgrowSharedMemory) {
  const std::uint64_t seed = test_seed();
  Large large;
  large.problem.dtype = DType::f16;
  large.selection.sparsity = 0.95;
  large.problem.heads_q = 2;
  large.problem.heads_kv = 1;
  large.problem.batch = 2;
  large.problem.query = Sequence{Video{4, 64, 64}};
  large.problem.key = Packed{16384, 64};
  large.with_lengths = true;
  judge_large(GetParam(), large, seed, 12);
  large.problem.batch = 1;
  large.problem.head_dim = 64;
  large.problem.key = Sequence{Video{64, 256, 256}};
  large.with_lengths = false;
  judge_large(GetParam(), large, seed + 1, 6);
}

/// Equal scores, zeros of both signs, NaN and infinities in pooled tensors of odd strides.
TEST_P(CudaStages, SelectOfTies) {
  const std::uint64_t seed = test_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 engine(seed);
  for (int round = 0; round < 40; ++round) {
    const auto below = [&](std::uint64_t limit) {
      return static_cast<std::int64_t>(engine() % limit);
    };
    Problem problem;
    problem.dtype = DType::bf16;
    problem.head_dim = below(2) == 0 ? 64 : 128;
    problem.query = Sequence{Video{4, 4, 4 * (1 + below(70))}};
    problem.key = Sequence{Plain{below(200)}, Video{4, 8, 4 * (1 + below(60))}};
    problem.heads_q = 2;
    problem.heads_kv = 1;
    const Environment forced = forced_block(block_of_turn(problem.head_dim, round));
    const Plan plan(problem, {kGpu, GetParam(), {}});
    const core::Setting setting{problem, plan.query_layout(), plan.key_layout(), Device{}, {}};
    const std::int64_t d = problem.head_dim;
    const std::array<std::int64_t, 4> query = {1, 2, plan.query_layout().tiles(), d};
    const std::array<std::int64_t, 4> key = {1, 1, plan.key_layout().tiles(), d};
    const std::int64_t gap = below(5);
    const auto strides = [&](const std::array<std::int64_t, 4>& shape) {
      return std::array<std::int64_t, 4>{shape[1] * shape[2] * (d + gap), shape[2] * (d + gap),
                                         d + gap, 1};
    };
    PoisonedTensor qc = normal_tensor(engine, query, strides(query), below(4));
    PoisonedTensor kc = normal_tensor(engine, key, strides(key), below(4));
    auto* q = static_cast<float*>(qc.ref.data);
    auto* k = static_cast<float*>(kc.ref.data);
    // Few distinct key tiles, each element a small integer: sums are exact, ties are many.
    for (std::int64_t i = 0; i < query[1] * query[2]; ++i) {
      float* row = q + qc.ref.offset(0, i / query[2], i % query[2]);
      for (std::int64_t e = 0; e < d; ++e) row[e] = static_cast<float>(below(5) - 2);
      if (below(10) == 0) row[below(static_cast<std::uint64_t>(d))] = HUGE_VALF;
      if (below(10) == 0) std::fill_n(row, d, -0.0F);
    }
    for (std::int64_t j = 0; j < key[2]; ++j) {
      float* row = k + kc.ref.offset(0, 0, j);
      std::fill_n(row, d, static_cast<float>(below(3) - 1));
      if (below(40) == 0) row[3] = NAN;
    }
    const auto bytes = static_cast<std::size_t>(plan.mask_shape().words()) * 8;
    Poisoned mask_memory(bytes);
    const TileMaskRef mask(reinterpret_cast<std::uint64_t*>(mask_memory.give_bytes(bytes)),
                           plan.mask_shape());
    DeviceMemory memory(kGpu);
    for (PoisonedTensor* tensor : {&qc, &kc}) {
      memory.add(tensor->memory.storage().data(), tensor->memory.storage().size());
    }
    memory.add_written(mask_memory.storage().data(), mask_memory.storage().size());
    SelectArgs args;
    args.qc = memory.at(qc.ref);
    args.kc = memory.at(kc.ref);
    args.mask = memory.at(mask);
    args.selection.top_k = 1 + below(static_cast<std::uint64_t>(plan.key_layout().video_tiles()));
    if (below(2) == 0) args.selection.prefix_mode = PrefixMode::compete;
    if (round % 8 == 0) args.scale = 0;  // times an infinite product: no number, the last in order
    const std::size_t bytes_needed = plan.workspace_bytes(args);
    Poisoned device_workspace(bytes_needed);
    std::byte* device_scratch = device_workspace.give_bytes(bytes_needed);
    memory.add_written(device_workspace.storage().data(), device_workspace.storage().size());
    plan.select(args, {memory.at(device_scratch), bytes_needed});
    memory.fetch();
    EXPECT_TRUE(mask_memory.intact());
    EXPECT_TRUE(device_workspace.intact());

    // The reference's own selection: with exact sums the two must be the same.
    const Plan exact(problem, {Device{}, "reference", {}});
    TileMask expected(plan.mask_shape());
    SelectArgs host = args;
    host.qc = qc.ref;
    host.kc = kc.ref;
    host.mask = expected.ref();
    const std::size_t scratch = exact.workspace_bytes(host);
    Poisoned workspace(scratch);
    exact.select(host, {workspace.give_bytes(scratch), scratch});
    for (std::int64_t word = 0; word < plan.mask_shape().words(); ++word) {
      ASSERT_EQ(mask.words[word], expected.view().words[word])
          << "word " << word << ", round " << round;
    }
  }
}

/// pool, then select on what it gave, on random problems: any strides and alignments, segments,
/// run-time lengths, every selection.
TEST_P(CudaStages, PoolAndSelectOfRandomProblems) {
  const std::uint64_t seed = test_seed();
  const std::int64_t count = test_problems(300);
  for (std::int64_t n = 0, drawn = 0; drawn < count; ++n) {
    const auto problem = random_problem(seed + static_cast<std::uint64_t>(n));
    const RandomProblem& r = *problem;
    const bool runs = r.problem().dtype != DType::f32 &&
                      (r.problem().head_dim == 64 || r.problem().head_dim == 128);
    if (!runs) continue;
    const cuda::SelectBlock& block = block_of_turn(r.problem().head_dim, drawn++);
    SCOPED_TRACE(r.to_string() + ", blocks of " + std::to_string(block.rows));
    const Environment forced = forced_block(block);
    const Plan plan(r.problem(), {kGpu, GetParam(), {}});
    Results results(r);
    DeviceMemory memory(kGpu);
    copy_to_device(r, results, memory);
    PoolArgs pool;
    pool.q = memory.at(r.q.ref);
    pool.k = memory.at(r.k.ref);
    pool.v = memory.at(r.v.ref);
    pool.lengths = {memory.at(r.lengths.query), memory.at(r.lengths.key)};
    pool.qc = memory.at(results.qc.ref);
    pool.kc = memory.at(results.kc.ref);
    pool.vc = memory.at(results.vc.ref);
    plan.pool(pool, {});
    SelectArgs select;
    select.qc = pool.qc;
    select.kc = pool.kc;
    select.vc = pool.vc;
    select.lengths = pool.lengths;
    select.selection = r.selection;
    select.selection.always = memory.at(r.selection.always);
    select.scale = r.scale;
    select.mask = memory.at(results.mask);
    select.oc = memory.at(results.oc.ref);
    select.coarse_max = memory.at(results.coarse_max.ref);
    select.coarse_sum = memory.at(results.coarse_sum.ref);
    const std::size_t bytes = plan.workspace_bytes(select);
    Poisoned workspace(bytes);
    std::byte* scratch = workspace.give_bytes(bytes);
    memory.add_written(workspace.storage().data(), workspace.storage().size());
    plan.select(select, {memory.at(scratch), bytes});
    memory.fetch();
    EXPECT_TRUE(workspace.intact());

    reference::OpInputs inputs;
    inputs.q = r.q.ref;
    inputs.k = r.k.ref;
    inputs.v = r.v.ref;
    inputs.lengths = r.lengths;
    inputs.scale = r.scale;
    inputs.gate = Gate(1.0F);
    const reference::Answers exact =
        answer_forward(r.setting, reference::ExactArithmetic<double>{}, inputs);
    const reference::ScoreInputs scores{exact.qc.view(), exact.kc.view(), r.lengths, r.scale};
    for (const auto& [name, output] : results.memory()) {
      EXPECT_TRUE(output->intact()) << name << ": written outside of the tensor";
    }
    for (const Report& report :
         {judge_close("qc", results.qc.ref, exact.qc.view(), reference::kPooledTolerance),
          judge_close("kc", results.kc.ref, exact.kc.view(), reference::kPooledTolerance),
          judge_close("vc", results.vc.ref, exact.vc.view(), reference::kPooledTolerance),
          judge_selection(r.setting, scores, r.selection, results.mask),
          judge_close("oc", results.oc.ref, exact.oc.view(), reference::kCoarseTolerance),
          judge_coarse_rows(r.setting, scores, results.coarse_max.ref, results.coarse_sum.ref)}) {
      ASSERT_TRUE(report.ok) << report.to_string();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaStages, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
