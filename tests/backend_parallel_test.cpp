// Two runs and any number of threads give the same bits. Small enough for the thread sanitizer.

#include <gtest/gtest.h>

#include "support/backend_run.hpp"

namespace vidsparse::testing {
namespace {

class BackendParallelTest : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (!GetParam().verdict.ok) GTEST_SKIP() << GetParam().verdict.reason;
    force(GetParam());
  }
};

TEST_P(BackendParallelTest, SameBitsForAnyNumberOfThreads) {
  const std::uint64_t seed = test_seed();
  const std::int64_t count = test_problems(300) / 6 + 1;
  for (std::int64_t n = 0; n < count; ++n) {
    const auto problem = random_problem(seed + static_cast<std::uint64_t>(n), GetParam().limits);
    Results alone(*problem);
    run(*problem, GetParam(), 1, alone);
    const auto expected = alone.memory();
    for (const int threads : {3, 3, 7}) {
      Results together(*problem);
      run(*problem, GetParam(), threads, together);
      const auto got = together.memory();
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_TRUE(expected[i].second->same_as(*got[i].second))
            << expected[i].first << ": another result with " << threads << " threads\n"
            << problem->to_string();
      }
    }
  }
}

std::string test_name(const ::testing::TestParamInfo<Target>& target) {
  return name_of(target.param);
}

INSTANTIATE_TEST_SUITE_P(All, BackendParallelTest, ::testing::ValuesIn(targets()), test_name);

}  // namespace
}  // namespace vidsparse::testing
