// Every backend and every instruction set of the CPU, on random problems, judged as the spec says:
// outputs and workspace poisoned and guarded.

#include <gtest/gtest.h>

#include "support/backend_run.hpp"

namespace vidsparse::testing {
namespace {

class BackendTest : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (!GetParam().verdict.ok) GTEST_SKIP() << GetParam().verdict.reason;
    force(GetParam());
  }

  /// Runs and judges one problem; false when there have been enough failures. With non-finite
  /// inputs, few elements may stay finite, and the RMS of a handful says nothing.
  bool passes(const RandomProblem& problem, bool judge_rms = true) {
    Results results(problem);
    run(problem, GetParam(), 1, results);
    for (const auto& [name, memory] : results.memory()) {
      EXPECT_TRUE(memory->intact()) << name << ": written outside of the tensor\n"
                                    << problem.to_string();
    }
    for (const reference::Report& report : judge(problem, results)) {
      if (!judge_rms && report.what.ends_with("RMS error")) continue;
      failures_ += report.ok ? 0 : 1;
      EXPECT_TRUE(report.ok) << report.to_string() << "\n" << problem.to_string();
    }
    return failures_ < 10;
  }

  /// Random problems whose inputs `spoil`, which takes a seed, has changed.
  void pass_all_spoiled_by(void (*spoil)(RandomProblem&, std::uint64_t)) {
    const std::uint64_t seed = test_seed();
    const std::int64_t count = test_problems(300) / 6 + 1;
    for (std::int64_t n = 0; n < count; ++n) {
      const auto problem = random_problem(seed + static_cast<std::uint64_t>(n), GetParam().limits);
      spoil(*problem, problem->seed);
      ASSERT_TRUE(passes(*problem, false)) << "enough";
    }
  }

 private:
  int failures_ = 0;
};

TEST_P(BackendTest, RandomProblems) {
  const std::uint64_t seed = test_seed();
  // The reference is its own judge but for the rounding of inputs and outputs.
  const std::int64_t count = test_problems(GetParam().backend == "reference" ? 60 : 300);
  for (std::int64_t n = 0; n < count; ++n) {
    ASSERT_TRUE(passes(*random_problem(seed + static_cast<std::uint64_t>(n), GetParam().limits)))
        << "enough";
  }
}

TEST_P(BackendTest, NonFiniteInputs) { pass_all_spoiled_by(add_non_finite); }

TEST_P(BackendTest, RowsWithoutWeight) { pass_all_spoiled_by(add_weightless_row); }

/// More fragments than kernels look at together, most of them with an edge or two: a GPU puts
/// several of those in the place of one.
TEST_P(BackendTest, ShortFragments) {
  const std::uint64_t seed = test_seed();
  Limits limits = GetParam().limits;
  for (std::uint64_t n = 0; n < 4; ++n) {
    Problem problem;
    problem.dtype = n % 2 == 0 ? DType::bf16 : DType::f16;
    problem.head_dim = n < 2 ? 128 : 64;
    problem.heads_q = 1;
    problem.query = n % 2 == 0 ? Sequence{Video{9, 9, 22}} : Sequence{Plain{19}, Video{6, 13, 18}};
    limits.problem = problem;
    ASSERT_TRUE(passes(*random_problem(seed + n, limits))) << "enough";
  }
}

/// Nothing to write, and nothing written; on a GPU, where no launch has a block, no error either.
TEST_P(BackendTest, BatchesOfNothing) {
  const std::uint64_t seed = test_seed();
  Limits limits = GetParam().limits;
  limits.no_batch = true;
  for (std::uint64_t n = 0; n < 20; ++n) {
    ASSERT_TRUE(passes(*random_problem(seed + n, limits))) << "enough";
  }
}

std::string test_name(const ::testing::TestParamInfo<Target>& target) {
  return name_of(target.param);
}

INSTANTIATE_TEST_SUITE_P(All, BackendTest, ::testing::ValuesIn(targets()), test_name);

}  // namespace
}  // namespace vidsparse::testing
