// The reference by itself: small cases worked out by hand, dense attention, gradients against
// finite differences, and a judge that must find what is wrong.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "reference/check.hpp"
#include "reference/rows.hpp"
#include "support/random_problem.hpp"

namespace vidsparse::testing {
namespace {

using reference::DenseTensor;
using reference::load;
using reference::store;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Plan reference_plan(const Problem& problem) {
  return Plan(problem, PlanOptions{Device{}, "reference", ParallelFor{}});
}

/// Calls a stage with a workspace of its own.
template <class Args>
void call(const Plan& plan, void (Plan::*stage)(const Args&, Workspace, void*) const,
          const Args& args) {
  const std::size_t bytes = plan.workspace_bytes(args);
  Poisoned memory(bytes);
  (plan.*stage)(args, Workspace{memory.give_bytes(bytes), bytes}, nullptr);
}

TEST(Half, RoundTripsEveryValue) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float f16 = core::from_f16(half);
    const float bf16 = core::from_bf16(half);
    if (std::isnan(f16)) {
      EXPECT_TRUE(std::isnan(core::from_f16(core::to_f16(f16))));
    } else {
      EXPECT_EQ(core::to_f16(f16), half);
    }
    if (std::isnan(bf16)) {
      EXPECT_TRUE(std::isnan(core::from_bf16(core::to_bf16(bf16))));
    } else {
      EXPECT_EQ(core::to_bf16(bf16), half);
      EXPECT_EQ(core::to_bf16(static_cast<double>(bf16)), half);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(core::from_f16(core::to_f16(2049.0)), 2048.0F);
  EXPECT_EQ(core::from_f16(core::to_f16(2051.0)), 2052.0F);
  EXPECT_EQ(core::from_f16(core::to_f16(65519.0)), 65504.0F);
  EXPECT_TRUE(std::isinf(core::from_f16(core::to_f16(65520.0))));
  EXPECT_EQ(core::from_f16(core::to_f16(0x1p-25)), 0.0F);
  EXPECT_EQ(core::from_f16(core::to_f16(0x1.8p-25)), 0x1p-24F);
  EXPECT_EQ(core::from_bf16(core::to_bf16(257.0F)), 256.0F);
  EXPECT_EQ(core::from_bf16(core::to_bf16(259.0F)), 260.0F);
  // Rounding to fp32 first would make a tie of this, and the tie would go down.
  EXPECT_EQ(core::from_bf16(core::to_bf16(257.0 + 1e-9)), 258.0F);
  EXPECT_TRUE(std::isnan(core::from_bf16(core::to_bf16(std::nanf("")))));
}

/// Tiles chosen for every query tile when the scores of all rows are `scores`: head_dim 1, qc = 1.
std::vector<std::vector<std::int64_t>> chosen(const Problem& problem,
                                              const std::vector<float>& scores,
                                              const Selection& selection,
                                              const Lengths& lengths = {}) {
  const Plan plan = reference_plan(problem);
  const MaskShape shape = plan.mask_shape();
  std::vector<float> ones(static_cast<std::size_t>(shape.query_tiles), 1.0F);
  TileMask mask(shape);
  SelectArgs args;
  args.qc = TensorView::dense(ones.data(), DType::f32, 4, {1, 1, shape.query_tiles, 1});
  args.kc = TensorView::dense(scores.data(), DType::f32, 4, {1, 1, shape.key_tiles, 1});
  args.lengths = lengths;
  args.selection = selection;
  args.scale = 1.0;
  args.mask = mask.ref();
  call(plan, &Plan::select, args);
  std::vector<std::vector<std::int64_t>> rows;
  for (std::int64_t i = 0; i < shape.query_tiles; ++i) {
    rows.emplace_back();
    for_each_set(mask.view().row(0, 0, i), shape.row_words(),
                 [&](std::int64_t tile) { rows.back().push_back(tile); });
  }
  return rows;
}

using Tiles = std::vector<std::int64_t>;

Problem one_head(Sequence query, std::optional<Sequence> key = {}, std::int64_t depth = 1,
                 DType dtype = DType::f32) {
  Problem problem;
  problem.query = std::move(query);
  problem.key = std::move(key);
  problem.head_dim = depth;
  problem.dtype = dtype;
  return problem;
}

Selection top(std::int64_t k, PrefixMode mode = PrefixMode::exempt) {
  Selection selection;
  selection.top_k = k;
  selection.prefix_mode = mode;
  return selection;
}

TEST(Select, TiesGoToTheLowestIndex) {
  const Problem problem = one_head({Video{4, 4, 4}}, Sequence{Video{4, 4, 24}});
  EXPECT_EQ(chosen(problem, {1, 3, 2, 3, 2, 2}, top(3))[0], (Tiles{1, 2, 3}));
  EXPECT_EQ(chosen(problem, {0.0F, -0.0F, 0.0F, -0.0F, -1, 1}, top(3))[0], (Tiles{0, 1, 5}));
  EXPECT_EQ(chosen(problem, {5, 5, 5, 5, 5, 5}, top(4))[0], (Tiles{0, 1, 2, 3}));
}

TEST(Select, NanComesBelowMinusInfinity) {
  const Problem problem = one_head({Video{4, 4, 4}}, Sequence{Video{4, 4, 20}});
  const auto infinity = static_cast<float>(kInfinity);
  const float nan = std::nanf("");
  const std::vector<float> scores = {nan, -infinity, 1, nan, infinity};
  EXPECT_EQ(chosen(problem, scores, top(2))[0], (Tiles{2, 4}));
  EXPECT_EQ(chosen(problem, scores, top(3))[0], (Tiles{1, 2, 4}));
  EXPECT_EQ(chosen(problem, scores, top(4))[0], (Tiles{0, 1, 2, 4}));
}

TEST(Select, PlainTiles) {
  // Key tiles: 0 and 1 of text, 2 to 5 of video, 6 of text. Query tiles: one of text, one of video.
  const Problem problem =
      one_head({Plain{3}, Video{1, 1, 1}}, Sequence{Plain{65}, Video{4, 4, 16}, Plain{9}});
  const std::vector<float> scores = {9, -9, 1, 4, 3, 2, 8};
  const auto exempt = chosen(problem, scores, top(2));
  EXPECT_EQ(exempt[0], (Tiles{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(exempt[1], (Tiles{0, 1, 3, 4, 6}));
  // k + P = 5 of all seven.
  const auto compete = chosen(problem, scores, top(2, PrefixMode::compete));
  EXPECT_EQ(compete[1], (Tiles{0, 3, 4, 5, 6}));
}

TEST(Select, EmptyTilesAreNeverChosen) {
  const Problem problem = one_head(Packed{1, 64}, Packed{4, 64});
  const std::vector<std::int32_t> sizes = {64, 0, 3, -7};
  Lengths lengths;
  lengths.key = TensorView::dense(sizes.data(), DType::i32, 1, {4});
  TileMask all({1, 1, 1, 4});
  for (std::int64_t j = 0; j < 4; ++j) all.set_all(0, j);
  Selection selection = top(3);
  EXPECT_EQ(chosen(problem, {1, 9, 2, 8}, selection, lengths)[0], (Tiles{0, 2}));
  selection = top(1);
  selection.always = all.view();
  EXPECT_EQ(chosen(problem, {1, 9, 2, 8}, selection, lengths)[0], (Tiles{0, 2}));
}

TEST(Select, AlwaysComesOnTop) {
  const Problem problem = one_head({Video{4, 4, 4}}, Sequence{Video{4, 4, 16}});
  TileMask always({1, 1, 1, 4});
  always.set_all(0, 3);
  Selection selection = top(1);
  selection.always = always.view();
  EXPECT_EQ(chosen(problem, {1, 2, 0, -5}, selection)[0], (Tiles{1, 3}));
  EXPECT_EQ(chosen(problem, {1, 2, 0, 5}, selection)[0], (Tiles{3}));
}

/// out and lse of one head of fp64 tokens over the tiles of `mask`.
struct Attention {
  DenseTensor out, lse;

  Attention(const Problem& problem, const TensorView& q, const TensorView& k, const TensorView& v,
            const TileMask& mask)
      : out(problem.dtype, 4, q.shape),
        lse(problem.dtype, 3, {problem.batch, problem.heads_q, q.shape[1]}) {
    const Plan plan = reference_plan(problem);
    AttendArgs args;
    args.q = q;
    args.k = k;
    args.v = v;
    args.scale = 0.5;
    args.mask = mask.view();
    args.out = out.ref();
    args.lse = lse.ref();
    call(plan, &Plan::attend, args);
  }
};

TEST(Attend, ByHand) {
  // Two key tiles of one token each (text of 1, video of 1), one query token.
  const Problem problem =
      one_head({Video{1, 1, 1}}, Sequence{Plain{1}, Video{1, 1, 1}}, 2, DType::f64);
  const std::vector<double> q = {2, 0};
  const std::vector<double> k = {3, 7, 3, -1};
  const std::vector<double> v = {1, 10, 5, 30};
  const auto view = [](const std::vector<double>& data, std::int64_t tokens) {
    return TensorView::dense(data.data(), DType::f64, 4, {1, tokens, 1, 2});
  };
  TileMask mask({1, 1, 1, 2});
  const Attention none(problem, view(q, 1), view(k, 2), view(v, 2), mask);
  EXPECT_EQ(load<double>(none.out.view(), 0), 0);
  EXPECT_EQ(load<double>(none.lse.view(), 0), -kInfinity);
  mask.set(0, 0, 0, 1);
  const Attention one(problem, view(q, 1), view(k, 2), view(v, 2), mask);
  EXPECT_DOUBLE_EQ(load<double>(one.out.view(), 1), 30);
  EXPECT_DOUBLE_EQ(load<double>(one.lse.view(), 0), 3);  // 0.5 * (2 * 3)
  mask.set(0, 0, 0, 0);
  const Attention both(problem, view(q, 1), view(k, 2), view(v, 2), mask);
  EXPECT_DOUBLE_EQ(load<double>(both.out.view(), 0), 3);
  EXPECT_DOUBLE_EQ(load<double>(both.lse.view(), 0), 3 + std::log(2.0));
}

TEST(Attend, ScoresOfMinusInfinityGiveAnEmptyRow) {
  const Problem problem = one_head({Video{1, 1, 1}}, Sequence{Video{1, 1, 2}}, 1, DType::f64);
  const std::vector<double> q = {1};
  const std::vector<double> k = {-kInfinity, -kInfinity};
  const std::vector<double> v = {kInfinity, 1};
  TileMask mask({1, 1, 1, 1});
  mask.set_all(0, 0);
  const Attention row(problem, TensorView::dense(q.data(), DType::f64, 4, {1, 1, 1, 1}),
                      TensorView::dense(k.data(), DType::f64, 4, {1, 2, 1, 1}),
                      TensorView::dense(v.data(), DType::f64, 4, {1, 2, 1, 1}), mask);
  EXPECT_EQ(load<double>(row.out.view(), 0), 0);
  EXPECT_EQ(load<double>(row.lse.view(), 0), -kInfinity);
}

TEST(Forward, WithoutSparsityAndGateItIsDenseAttention) {
  std::mt19937_64 engine(test_seed());
  std::normal_distribution<double> normal;
  Problem problem = one_head({Plain{5}, Video{5, 3, 7}}, {}, 16, DType::f64);
  problem.heads_q = 2;
  const std::int64_t tokens = 110;
  std::vector<double> q(static_cast<std::size_t>(tokens * 32)), k(q.size()), v(q.size());
  for (auto* tensor : {&q, &k, &v}) {
    for (double& value : *tensor) value = normal(engine);
  }
  const std::array<std::int64_t, 4> shape = {1, tokens, 2, 16};
  DenseTensor out(DType::f64, 4, shape);
  DenseTensor lse(DType::f64, 3, {1, 2, tokens});
  ForwardArgs args;
  args.q = TensorView::dense(q.data(), DType::f64, 4, shape);
  args.k = TensorView::dense(k.data(), DType::f64, 4, shape);
  args.v = TensorView::dense(v.data(), DType::f64, 4, shape);
  args.selection.sparsity = 0.0;
  args.out = out.ref();
  args.lse = lse.ref();
  call(reference_plan(problem), &Plan::forward, args);

  const auto at = [&](const std::vector<double>& tensor, std::int64_t s, std::int64_t h,
                      std::int64_t d) {
    return tensor[static_cast<std::size_t>((s * 2 + h) * 16 + d)];
  };
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t i = 0; i < tokens; ++i) {
      double sum = 0;
      std::vector<double> row(16, 0.0);
      for (std::int64_t j = 0; j < tokens; ++j) {
        double score = 0;
        for (std::int64_t d = 0; d < 16; ++d) score += at(q, i, h, d) * at(k, j, h, d);
        const double weight = std::exp(score / 4);
        sum += weight;
        for (std::int64_t d = 0; d < 16; ++d) {
          row[static_cast<std::size_t>(d)] += weight * at(v, j, h, d);
        }
      }
      EXPECT_NEAR(load<double>(lse.view(), h * tokens + i), std::log(sum), 1e-12);
      for (std::int64_t d = 0; d < 16; ++d) {
        EXPECT_NEAR(load<double>(out.view(), out.view().offset(0, i, h) + d),
                    row[static_cast<std::size_t>(d)] / sum, 1e-12);
      }
    }
  }
}

}  // namespace
}  // namespace vidsparse::testing
