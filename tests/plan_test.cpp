#include "vidsparse/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/environment.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse {
namespace {

using testing::Environment;

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("expected "), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("got "), std::string::npos) << error.what();
    return error.argument();
  }
  return "accepted";
}

Problem small_problem() {
  Problem problem;
  problem.query = Sequence::grid({5, 6, 7}, {20});
  problem.heads_q = 2;
  problem.head_dim = 64;
  problem.dtype = DType::f32;
  return problem;
}

// A whole valid forward call on small_problem(), to be spoiled one argument at a time.
struct Call {
  Plan plan{small_problem()};
  std::int64_t tokens = plan.query_layout().tokens();
  std::vector<float> q = std::vector<float>(static_cast<std::size_t>(tokens * 2 * 64), 0.5F);
  std::vector<float> out = std::vector<float>(q.size(), std::nanf(""));
  std::vector<float> lse = std::vector<float>(static_cast<std::size_t>(tokens * 2), std::nanf(""));
  std::unique_ptr<void, void (*)(void*)> memory{nullptr, std::free};
  ForwardArgs args;
  Workspace workspace;

  Call() {
    args.q = args.k = args.v = TensorRef::dense(q.data(), DType::f32, 4, {1, tokens, 2, 64});
    args.out = TensorRef::dense(out.data(), DType::f32, 4, {1, tokens, 2, 64});
    args.lse = TensorRef::dense(lse.data(), DType::f32, 3, {1, 2, tokens});
    args.selection.sparsity = 0.5;
    workspace.bytes = (plan.workspace_bytes(args) + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, workspace.bytes + 64));
    workspace.data = memory.get();
  }

  std::string run() {
    return refusal([&] { plan.forward(args, workspace); });
  }
};

TEST(Plan, RefusesImpossibleProblemsByName) {
  const auto argument_of = [](const std::function<void(Problem&)>& spoil) {
    Problem problem = small_problem();
    spoil(problem);
    return refusal([&] { Plan plan(problem); });
  };
  EXPECT_EQ(argument_of([](Problem&) {}), "accepted");
  EXPECT_EQ(argument_of([](Problem& p) { p.batch = -1; }), "batch");
  EXPECT_EQ(argument_of([](Problem& p) { p.heads_q = 0; }), "heads_q");
  EXPECT_EQ(argument_of([](Problem& p) { p.heads_kv = 3; }), "heads_kv");
  EXPECT_EQ(argument_of([](Problem& p) { p.head_dim = 0; }), "head_dim");
  EXPECT_EQ(argument_of([](Problem& p) { p.dtype = DType::i32; }), "dtype");
  EXPECT_EQ(argument_of([](Problem& p) { p.tile = {4, 4, 3}; }), "tile");
  EXPECT_EQ(argument_of([](Problem& p) { p.query = Sequence{Video{4, -4, 4}}; }), "sequence");
  EXPECT_EQ(argument_of([](Problem& p) {
              p.query = Sequence{Video{1 << 20, 1 << 20, 1 << 20}};
            }),
            "head_dim");
}

TEST(Plan, RefusesCallsThatDoNotFitByName) {
  {
    Call call;
    ASSERT_EQ(call.run(), "accepted");
    for (const float value : call.out) ASSERT_FLOAT_EQ(value, 0.5F);
  }
  const auto argument_of = [](const std::function<void(Call&)>& spoil) {
    Call call;
    spoil(call);
    const std::string argument = call.run();
    for (const float value : call.out) EXPECT_TRUE(std::isnan(value)) << "output touched";
    return argument;
  };
  EXPECT_EQ(argument_of([](Call& c) { c.args.q = {}; }), "q");
  EXPECT_EQ(argument_of([](Call& c) { c.args.k.data = nullptr; }), "k");
  EXPECT_EQ(argument_of([](Call& c) { c.args.v.shape[1] -= 1; }), "v");
  EXPECT_EQ(argument_of([](Call& c) { c.args.v.dtype = DType::bf16; }), "v");
  EXPECT_EQ(argument_of([](Call& c) { c.args.k.strides[3] = 2; }), "k");
  EXPECT_EQ(argument_of([](Call& c) { c.args.out.strides[1] = 0; }), "out");
  EXPECT_EQ(argument_of([](Call& c) { c.args.lse.shape[2] += 1; }), "lse");
  EXPECT_EQ(argument_of([](Call& c) { c.args.selection.top_k = 1; }), "sparsity");
  EXPECT_EQ(argument_of([](Call& c) { c.args.selection.sparsity.reset(); }), "sparsity");
  EXPECT_EQ(argument_of([](Call& c) { c.args.selection.sparsity = 1.0; }), "sparsity");
  EXPECT_EQ(argument_of([](Call& c) {
              c.args.selection.sparsity.reset();
              c.args.selection.top_k = 100;
            }),
            "top_k");
  EXPECT_EQ(argument_of([](Call& c) { c.args.scale = std::nan(""); }), "scale");
  EXPECT_EQ(argument_of([](Call& c) { c.args.scale = -1e39; }), "scale");  // no f32
  EXPECT_EQ(argument_of([](Call& c) { c.args.gate = Gate(TensorView(c.args.lse)); }), "gate");
  EXPECT_EQ(argument_of([](Call& c) { c.args.oc = c.args.out; }), "oc");
  EXPECT_EQ(argument_of([](Call& c) { c.args.lengths.query = c.args.lse; }), "lengths.query");
  EXPECT_EQ(argument_of([](Call& c) { c.workspace.data = nullptr; }), "workspace");
  EXPECT_EQ(argument_of([](Call& c) { c.workspace.bytes = 0; }), "workspace");
  EXPECT_EQ(argument_of(
                [](Call& c) { c.workspace.data = static_cast<std::byte*>(c.workspace.data) + 1; }),
            "workspace");
}

TEST(Plan, RefusesCoarseRowsThatShareMemory) {
  Call call;
  std::vector<float> rows(static_cast<std::size_t>(call.plan.query_layout().tiles()),
                          std::nanf(""));
  TensorRef shared =
      TensorRef::dense(rows.data(), DType::f32, 3, {1, 2, call.plan.query_layout().tiles()});
  shared.strides[1] = 0;
  call.args.gate = 1.0F;
  for (TensorRef ForwardArgs::*output : {&ForwardArgs::coarse_max, &ForwardArgs::coarse_sum}) {
    call.args.coarse_max = call.args.coarse_sum = {};
    call.args.*output = shared;
    EXPECT_EQ(call.run(), output == &ForwardArgs::coarse_max ? "coarse_max" : "coarse_sum");
  }
}

TEST(Plan, TheCpuRefusesMoreTilesThanItsIntegersHold) {
  Problem problem = small_problem();
  problem.key = Packed{std::int64_t{1} << 31, 64};
  const std::vector<BackendInfo> list = backends(Device{}, &problem);
  const auto cpu = std::find_if(list.begin(), list.end(),
                                [](const BackendInfo& info) { return info.name == "cpu"; });
  ASSERT_NE(cpu, list.end());
  EXPECT_FALSE(cpu->verdict.ok);
  EXPECT_NE(cpu->verdict.reason.find("2147483648"), std::string::npos) << cpu->verdict.reason;
}

TEST(Plan, ATensorOfTooManyDimensionsIsRefusedWithoutReadingThem) {
  Call call;
  call.args.q.rank = 1 << 30;
  EXPECT_EQ(call.run(), "q");
  EXPECT_EQ(to_string(call.args.q), "a tensor of rank 1073741824");
}

TEST(Plan, ForcedBackends) {
  const auto backend_of = [](const std::string& option) {
    PlanOptions options;
    options.backend = option;
    return Plan(small_problem(), options).backend();
  };
  EXPECT_EQ(backend_of(""), "cpu");
  EXPECT_EQ(backend_of("reference"), "reference");
  EXPECT_EQ(refusal([&] { backend_of("tpu"); }), "backend");
  {
    const Environment forced("VIDSPARSE_BACKEND", "reference");
    EXPECT_EQ(backend_of(""), "reference");
    EXPECT_EQ(backend_of("cpu"), "cpu");
  }
  {
    const Environment forced("VIDSPARSE_BACKEND", "tpu");
    EXPECT_EQ(refusal([&] { backend_of(""); }), "VIDSPARSE_BACKEND");
  }
  const Environment forced("VIDSPARSE_CPU_ISA", "mmx");
  try {
    backend_of("");
    FAIL() << "accepted an unknown instruction set";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("VIDSPARSE_CPU_ISA: expected "), std::string::npos)
        << error.what();
  }
}

TEST(Plan, ARefusalGivesEveryReason) {
  PlanOptions options;
  options.device = {Device::Kind::cuda, 0};
  try {
    Plan plan(small_problem(), options);
    FAIL() << "accepted a CUDA device without a CUDA backend";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported);
    EXPECT_NE(std::string(error.what()).find("cpu: "), std::string::npos) << error.what();
  }
  for (const BackendInfo& info : backends({Device::Kind::cuda, 0})) {
    EXPECT_FALSE(info.verdict.ok);
    EXPECT_FALSE(info.verdict.reason.empty());
  }
}

TEST(Plan, FloatingPointSixtyFourIsTheReferencesAlone) {
  Problem problem = small_problem();
  problem.dtype = DType::f64;
  EXPECT_THROW(Plan plan(problem), Error);
  PlanOptions options;
  options.backend = "reference";
  EXPECT_EQ(Plan(problem, options).backend(), "reference");
}

}  // namespace
}  // namespace vidsparse
