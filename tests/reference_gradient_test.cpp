// Gradients of the reference against central differences in fp64, and the judge that every backend
// is held to: it must find what is wrong.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "reference/check.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"
#include "support/random_problem.hpp"

namespace vidsparse::testing {
namespace {

using reference::Answers;
using reference::DenseTensor;
using reference::load;
using reference::OpInputs;
using reference::Report;
using reference::store;

enum class GateKind { none, scalar, tensor };

struct Case {
  const char* name;
  Problem problem;
  Selection selection;
  std::vector<std::int32_t> query_lengths, key_lengths;  ///< [columns], shared by the batch
};

Case make_case(const char* name, Sequence query, std::optional<Sequence> key, std::int64_t heads_q,
               std::int64_t heads_kv) {
  Case made{name, {}, {}, {}, {}};
  made.problem.query = std::move(query);
  made.problem.key = std::move(key);
  made.problem.heads_q = heads_q;
  made.problem.heads_kv = heads_kv;
  made.problem.head_dim = 6;
  made.problem.dtype = DType::f64;
  made.selection.sparsity = 0.5;
  return made;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  list.push_back(make_case("ragged", Sequence{Video{5, 3, 6}}, {}, 1, 0));
  list.push_back(make_case("batch", Sequence{Video{2, 5, 5}}, {}, 2, 0));
  list.back().problem.batch = 2;
  list.push_back(make_case("exempt", {Plain{9}, Video{5, 4, 5}, Plain{3}}, {}, 1, 0));
  list.push_back(make_case("compete", {Plain{9}, Video{5, 4, 5}, Plain{3}}, {}, 1, 0));
  list.back().selection.prefix_mode = PrefixMode::compete;
  list.push_back(make_case("grouped_heads", Sequence{Video{3, 5, 5}}, {}, 4, 2));
  list.push_back(make_case("cross_lengths", Sequence{Video{2, 4, 6}},
                           Sequence{Video{5, 5, 5}, Plain{4}}, 1, 0));
  list.push_back(make_case("packed", Packed{3, 64}, {}, 1, 0));
  list.back().query_lengths = list.back().key_lengths = {20, 0, 33};
  list.push_back(make_case("packed_keys", Sequence{Video{3, 3, 9}}, Packed{4, 64}, 2, 1));
  list.back().key_lengths = {0, 12, 64, 1};
  list.push_back(make_case("run_time_lengths", {Plain{70}, Video{2, 5, 4}}, {}, 1, 0));
  list.back().query_lengths = list.back().key_lengths = {66};
  return list;
}

class GradientTest : public ::testing::TestWithParam<std::tuple<Case, GateKind, bool>> {
 protected:
  void SetUp() override {
    const auto& [given, gate, with_dlse] = GetParam();
    seed_ = test_seed();
    engine_.seed(seed_);
    const Problem& p = given.problem;
    setting_ = std::make_unique<core::Setting>(core::Setting{
        p, TileLayout(p.query, p.tile), TileLayout(p.key_sequence(), p.tile), Device{}, {}});
    if (!given.query_lengths.empty()) inputs_.lengths.query = lengths_of(given.query_lengths);
    if (!given.key_lengths.empty()) inputs_.lengths.key = lengths_of(given.key_lengths);
    q_ = random(true);
    k_ = random(false);
    v_ = random(false);
    dout_ = random(true);
    gate_ = random(true);
    dlse_ = DenseTensor(DType::f64, 3, {p.batch, p.heads_q, setting_->query.tokens()});
    for (std::int64_t n = 0; n < dlse_.view().elements(); ++n)
      store(dlse_.ref(), n, normal_(engine_));
    inputs_.q = q_.view();
    inputs_.k = k_.view();
    inputs_.v = v_.view();
    inputs_.dout = dout_.view();
    if (with_dlse) inputs_.dlse = dlse_.view();
    if (gate == GateKind::scalar) inputs_.gate = Gate(0.7F);
    if (gate == GateKind::tensor) inputs_.gate = Gate(gate_.view());

    // The selection is made once: no gradient passes through it.
    mask_ = TileMask(MaskShape{p.batch, p.heads_q, setting_->query.tiles(), setting_->key.tiles()});
    const Plan plan(p, PlanOptions{Device{}, "reference", {}});
    DenseTensor out(DType::f64, 4, q_.view().shape);
    ForwardArgs args;
    args.q = inputs_.q;
    args.k = inputs_.k;
    args.v = inputs_.v;
    args.lengths = inputs_.lengths;
    args.selection = given.selection;
    args.out = out.ref();
    args.mask = mask_.ref();
    std::vector<std::byte> memory(plan.workspace_bytes(args) + 64);
    void* base = memory.data();
    std::size_t space = memory.size();
    plan.forward(args, {std::align(64, memory.size() - 64, base, space), memory.size() - 64});
    inputs_.mask = mask_.view();
  }

  static TensorView lengths_of(const std::vector<std::int32_t>& lengths) {
    return TensorView::dense(lengths.data(), DType::i32, 1,
                             {static_cast<std::int64_t>(lengths.size())});
  }

  /// Tokens of one side; NaN where no token is valid.
  DenseTensor random(bool query) {
    const Problem& p = setting_->problem;
    const TileLayout& layout = query ? setting_->query : setting_->key;
    const reference::Side side(layout, query ? inputs_.lengths.query : inputs_.lengths.key);
    DenseTensor tensor(DType::f64, 4,
                       {p.batch, layout.tokens(), query ? p.heads_q : p.key_heads(), p.head_dim});
    const TensorRef ref = tensor.ref();
    for (std::int64_t n = 0; n < ref.elements(); ++n) store(ref, n, std::nan(""));
    for (std::int64_t b = 0; b < p.batch; ++b) {
      for (std::int64_t tile = 0; tile < layout.tiles(); ++tile) {
        side.for_each_token(b, tile, [&](std::int64_t token) {
          for (std::int64_t n = 0; n < ref.shape[2] * ref.shape[3]; ++n) {
            store(ref, ref.offset(b, token) + n, normal_(engine_));
          }
        });
      }
    }
    return tensor;
  }

  /// sum(dout * out) + sum(dlse * lse) over what is valid.
  double loss() const {
    const Answers answers =
        answer_forward(*setting_, reference::ExactArithmetic<double>{}, inputs_);
    double sum = 0;
    for (std::int64_t n = 0; n < dout_.view().elements(); ++n) {
      const double weight = load<double>(dout_.view(), n);
      if (!std::isnan(weight)) sum += weight * load<double>(answers.out.view(), n);
    }
    for (std::int64_t n = 0; inputs_.dlse && n < inputs_.dlse.elements(); ++n) {
      const double lse = load<double>(answers.lse.view(), n);
      if (std::isfinite(lse)) sum += load<double>(inputs_.dlse, n) * lse;
    }
    return sum;
  }

  /// The gradient along a random direction, against the difference of two losses.
  void check(const char* name, DenseTensor& tensor, const DenseTensor& gradient) {
    const TensorRef ref = tensor.ref();
    std::vector<double> base, direction;
    double expected = 0;
    for (std::int64_t n = 0; n < ref.elements(); ++n) {
      base.push_back(load<double>(ref, n));
      direction.push_back(normal_(engine_));
      const double slope = load<double>(gradient.view(), n);
      if (std::isnan(base.back())) {
        EXPECT_EQ(slope, 0) << name << ": a pad must have gradient 0";
      } else {
        expected += slope * direction.back();
      }
    }
    constexpr double kStep = 1e-5;
    const auto loss_at = [&](double step) {
      for (std::size_t n = 0; n < base.size(); ++n) {
        store(ref, static_cast<std::int64_t>(n), base[n] + step * direction[n]);
      }
      return loss();
    };
    const double difference = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    loss_at(0);
    EXPECT_NEAR(difference, expected, 1e-6 * (1 + std::abs(expected)))
        << name << ", VIDSPARSE_TEST_SEED=" << seed_;
  }

  std::uint64_t seed_ = 0;
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
  std::unique_ptr<core::Setting> setting_;
  OpInputs inputs_;
  DenseTensor q_, k_, v_, gate_, dout_, dlse_;
  TileMask mask_;
};

TEST_P(GradientTest, AgreesWithFiniteDifferences) {
  const reference::ExactArithmetic<double> exactly;
  Answers answers = answer_forward(*setting_, exactly, inputs_);
  answer_backward(*setting_, exactly, inputs_, answers);
  check("dq", q_, answers.dq);
  check("dk", k_, answers.dk);
  check("dv", v_, answers.dv);
  if (inputs_.gate.is_tensor()) check("dgate", gate_, answers.dgate);
}

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<Case, GateKind, bool>>& test) {
  const auto& [given, gate, with_dlse] = test.param;
  const char* kinds[] = {"no_gate", "scalar_gate", "tensor_gate"};
  return std::string(given.name) + "_" + kinds[static_cast<int>(gate)] + (with_dlse ? "_dlse" : "");
}

void PrintTo(const Case& given, std::ostream* stream) { *stream << given.name; }

INSTANTIATE_TEST_SUITE_P(All, GradientTest,
                         ::testing::Combine(::testing::ValuesIn(cases()),
                                            ::testing::Values(GateKind::none, GateKind::scalar,
                                                              GateKind::tensor),
                                            ::testing::Bool()),
                         name_of_case);

/// A judge's subject: three numbers in bf16 and what they ought to be.
Report judge_three(std::vector<float> actual, std::vector<double> exact,
                   std::vector<double> plain) {
  DenseTensor values(DType::bf16, 1, {3});
  for (std::size_t n = 0; n < 3; ++n) store(values.ref(), static_cast<std::int64_t>(n), actual[n]);
  return reference::judge_tensor("out", values.view(),
                                 TensorView::dense(exact.data(), DType::f64, 1, {3}),
                                 {TensorView::dense(plain.data(), DType::f64, 1, {3})});
}

TEST(Judge, BoundsOfTensors) {
  const double nan = std::nan("");
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> exact = {1, -2, 0.5};
  EXPECT_TRUE(judge_three({1, -2, 0.5F}, exact, exact).ok);
  // One ulp of bf16 at 2 is 2^-6: allowed once, but not as an RMS error against an exact plain.
  EXPECT_FALSE(judge_three({1, -2.03125F, 0.5F}, exact, exact).ok);
  EXPECT_TRUE(judge_three({1, -2.03125F, 0.5F}, exact, {1, -2.03, 0.52}).ok);
  EXPECT_FALSE(judge_three({1, -2.25F, 0.5F}, exact, {1, -2.03, 0.52}).ok);
  EXPECT_FALSE(judge_three({1, -2, std::nanf("")}, exact, exact).ok);
  EXPECT_FALSE(judge_three({1, -2, 0.5F}, {1, -2, nan}, exact).ok);
  EXPECT_TRUE(judge_three({1, -2, std::nanf("")}, {1, -2, nan}, {1, -2, nan}).ok);
  EXPECT_FALSE(judge_three({1, -2, static_cast<float>(infinity)}, {1, -2, -infinity}, exact).ok);
  // Beyond the range of bf16 infinity is the right answer.
  EXPECT_TRUE(judge_three({1, -2, static_cast<float>(infinity)}, {1, -2, 1e39}, exact).ok);
}

TEST(Judge, FindsAWrongSelection) {
  Problem problem;
  problem.query = Sequence{Video{4, 4, 4}};
  problem.key = Sequence{Video{4, 4, 20}};
  problem.head_dim = 1;
  const core::Setting setting{problem,
                              TileLayout(problem.query, problem.tile),
                              TileLayout(*problem.key, problem.tile),
                              Device{},
                              {}};
  const std::vector<float> query = {1};
  // Tiles 1 and 2 differ by less than tau = 2^-14 * 4.
  const std::vector<float> keys = {1, 3, 3.0001F, 0, 4};
  const reference::ScoreInputs inputs{TensorView::dense(query.data(), DType::f32, 4, {1, 1, 1, 1}),
                                      TensorView::dense(keys.data(), DType::f32, 4, {1, 1, 5, 1}),
                                      {},
                                      1.0};
  Selection selection;
  selection.top_k = 2;
  const auto judged = [&](std::initializer_list<std::int64_t> tiles) {
    TileMask mask(MaskShape{1, 1, 1, 5});
    for (const std::int64_t tile : tiles) mask.set_all(0, tile);
    return judge_selection(setting, inputs, selection, mask.view()).ok;
  };
  EXPECT_TRUE(judged({2, 4}));
  EXPECT_TRUE(judged({1, 4}));
  EXPECT_FALSE(judged({0, 4}));
  EXPECT_FALSE(judged({1, 2}));
  EXPECT_FALSE(judged({4}));
  EXPECT_FALSE(judged({1, 2, 4}));
  TileMask always(MaskShape{1, 1, 1, 5});
  always.set_all(0, 1);
  always.set_all(0, 3);
  selection.always = always.view();
  EXPECT_TRUE(judged({1, 3, 4}));
  EXPECT_TRUE(judged({1, 2, 3, 4}));
  EXPECT_FALSE(judged({2, 3, 4}));
  EXPECT_FALSE(judged({0, 1, 3, 4}));
}

}  // namespace
}  // namespace vidsparse::testing
