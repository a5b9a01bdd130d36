#pragma once

#include <gtest/gtest.h>

#include <string>

#include "vidsparse/backend.hpp"

namespace vidsparse::testing {

inline const Device kGpu{Device::Kind::cuda, 0};

/// A test on the first GPU of the backend its parameter names; skipped where that cannot run.
class GpuTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const BackendInfo& backend : backends(kGpu)) {
      if (backend.name != GetParam()) continue;
      if (!backend.verdict.ok) GTEST_SKIP() << backend.verdict.reason;
      return;
    }
    GTEST_SKIP() << GetParam() << " is not built";
  }
};

}  // namespace vidsparse::testing
