#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "vidsparse/vidsparse.h"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse {

inline constexpr std::int64_t kBatch = 2, kHeads = 3, kDim = 64, kText = 70;
inline constexpr std::int64_t kT = 5, kH = 6, kW = 9;

/// One problem in both interfaces, on the reference.
class CInterface : public ::testing::Test {
 protected:
  void SetUp() override {
    const unsigned seed = std::random_device{}();
    RecordProperty("seed", std::to_string(seed));
    std::printf("seed %u\n", seed);
    random_.seed(seed);
    problem_ = vidsparse_problem_init();
    problem_.query.segments = segments_;
    problem_.query.segment_count = 2;
    problem_.batch = kBatch;
    problem_.heads_q = kHeads;
    problem_.head_dim = kDim;
    problem_.dtype = VIDSPARSE_F32;
    options_ = vidsparse_plan_options_init();
    options_.backend = "reference";
    ASSERT_EQ(vidsparse_plan_create(&problem_, &options_, &c_), VIDSPARSE_OK)
        << vidsparse_last_error();
    Problem problem;
    problem.query = Sequence{Plain{kText}, Video{kT, kH, kW}};
    problem.batch = kBatch;
    problem.heads_q = kHeads;
    problem.head_dim = kDim;
    problem.dtype = DType::f32;
    PlanOptions options;
    options.backend = "reference";
    plan_ = std::make_unique<Plan>(problem, options);
    tokens_ = plan_->query_layout().tokens();
    tiles_ = plan_->query_layout().tiles();
  }
  void TearDown() override { vidsparse_plan_destroy(c_); }

  std::vector<float> random_values(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }
  static std::vector<float> poison(std::int64_t count) {
    return std::vector<float>(static_cast<std::size_t>(count),
                              std::numeric_limits<float>::quiet_NaN());
  }
  std::int64_t token_elements() const { return kBatch * tokens_ * kHeads * kDim; }
  std::int64_t pooled_elements() const { return kBatch * kHeads * tiles_ * kDim; }

  static vidsparse_tensor c_tensor(std::vector<float>& values, int rank, std::int64_t b,
                                   std::int64_t i, std::int64_t j, std::int64_t k) {
    return vidsparse_dense(values.data(), VIDSPARSE_F32, rank, b, i, j, k);
  }
  vidsparse_tensor c_tokens(std::vector<float>& values) const {
    return c_tensor(values, 4, kBatch, tokens_, kHeads, kDim);
  }
  vidsparse_tensor c_pooled(std::vector<float>& values) const {
    return c_tensor(values, 4, kBatch, kHeads, tiles_, kDim);
  }
  vidsparse_tensor c_rows(std::vector<float>& values, std::int64_t rows) const {
    return c_tensor(values, 3, kBatch, kHeads, rows, 0);
  }
  TensorRef tokens(std::vector<float>& values) const {
    return TensorRef::dense(values.data(), DType::f32, 4, {kBatch, tokens_, kHeads, kDim});
  }
  TensorRef pooled(std::vector<float>& values) const {
    return TensorRef::dense(values.data(), DType::f32, 4, {kBatch, kHeads, tiles_, kDim});
  }
  TensorRef rows(std::vector<float>& values, std::int64_t count) const {
    return TensorRef::dense(values.data(), DType::f32, 3, {kBatch, kHeads, count, 0});
  }

  /// Runs a call of both interfaces with the workspace each asks for, which must be the same.
  template <class CArgs, class Args, class AskBytes, class CRun, class Run>
  void run_both(const CArgs& c_args, const Args& args, AskBytes ask, CRun c_run, Run run) {
    std::size_t bytes = 0;
    ASSERT_EQ(ask(c_, &c_args, &bytes), VIDSPARSE_OK) << vidsparse_last_error();
    ASSERT_EQ(bytes, plan_->workspace_bytes(args));
    std::vector<unsigned char> block(bytes + 64, 0xFF);
    auto* aligned = block.data() + (64 - reinterpret_cast<std::uintptr_t>(block.data()) % 64) % 64;
    ASSERT_EQ(c_run(c_, &c_args, aligned, bytes, nullptr), VIDSPARSE_OK) << vidsparse_last_error();
    std::memset(aligned, 0xFF, bytes);
    (plan_.get()->*run)(args, Workspace{aligned, bytes}, nullptr);
  }

  /// Bitwise, so that NaN left behind by both counts as equal and -0 differs from 0.
  static void expect_same(const std::vector<float>& a, const std::vector<float>& b,
                          const char* name) {
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << name;
  }

  void expect_refused(int status, const std::string& argument) {
    EXPECT_EQ(status, VIDSPARSE_INVALID_ARGUMENT) << argument;
    EXPECT_EQ(vidsparse_last_error_argument(), argument) << vidsparse_last_error();
    EXPECT_EQ(std::string(vidsparse_last_error()).rfind(argument + ": expected ", 0), 0U)
        << vidsparse_last_error();
  }

  std::mt19937 random_;
  vidsparse_segment segments_[2] = {vidsparse_plain(kText), vidsparse_video(kT, kH, kW)};
  vidsparse_problem problem_{};
  vidsparse_plan_options options_{};
  vidsparse_plan* c_ = nullptr;
  std::unique_ptr<Plan> plan_;
  std::int64_t tokens_ = 0;
  std::int64_t tiles_ = 0;
};

}  // namespace vidsparse
