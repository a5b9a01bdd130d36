// What the C interface promises beside results: its numbers, struct sizes, refusals and lists.
#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "c_interface_fixture.hpp"

namespace vidsparse {
namespace {

static_assert(VIDSPARSE_F64 == static_cast<int>(DType::f64));
static_assert(VIDSPARSE_F32 == static_cast<int>(DType::f32));
static_assert(VIDSPARSE_F16 == static_cast<int>(DType::f16));
static_assert(VIDSPARSE_BF16 == static_cast<int>(DType::bf16));
static_assert(VIDSPARSE_I32 == static_cast<int>(DType::i32));
static_assert(VIDSPARSE_I64 == static_cast<int>(DType::i64));
static_assert(VIDSPARSE_U8 == static_cast<int>(DType::u8));
static_assert(VIDSPARSE_INVALID_ARGUMENT == static_cast<int>(ErrorCode::invalid_argument));
static_assert(VIDSPARSE_UNSUPPORTED == static_cast<int>(ErrorCode::unsupported));
static_assert(VIDSPARSE_OUT_OF_MEMORY == static_cast<int>(ErrorCode::out_of_memory));
static_assert(VIDSPARSE_INTERNAL == static_cast<int>(ErrorCode::internal));
static_assert(VIDSPARSE_EXEMPT == static_cast<int>(PrefixMode::exempt));
static_assert(VIDSPARSE_COMPETE == static_cast<int>(PrefixMode::compete));

// Frozen for good: programs compiled against an older header pass these by value inside others.
static_assert(sizeof(vidsparse_tensor) == 80);
static_assert(sizeof(vidsparse_mask) == 56);
static_assert(sizeof(vidsparse_segment) == 40);
static_assert(sizeof(vidsparse_gate) == 88);
static_assert(sizeof(vidsparse_scale) == 16);

TEST_F(CInterface, StructSizes) {
  // An older program's problem ends before head_dim: the defaults stand, whatever lies there.
  vidsparse_plan* plan = nullptr;
  vidsparse_problem older = problem_;
  older.struct_size = offsetof(vidsparse_problem, head_dim);
  older.head_dim = -5;
  older.dtype = 99;
  ASSERT_EQ(vidsparse_plan_create(&older, &options_, &plan), VIDSPARSE_OK)
      << vidsparse_last_error();
  vidsparse_plan_destroy(plan);

  // A newer program's is longer.
  struct Newer {
    vidsparse_problem known;
    std::int64_t unknown;
  } newer{problem_, 0};
  newer.known.struct_size = sizeof newer;
  plan = nullptr;
  ASSERT_EQ(vidsparse_plan_create(&newer.known, &options_, &plan), VIDSPARSE_OK);
  vidsparse_plan_destroy(plan);
  plan = nullptr;
  newer.unknown = 1;
  expect_refused(vidsparse_plan_create(&newer.known, &options_, &plan), "problem.struct_size");
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, sizeof newer.known - 3,
                                 std::numeric_limits<std::size_t>::max()}) {
    vidsparse_problem wrong = problem_;
    wrong.struct_size = size;
    expect_refused(vidsparse_plan_create(&wrong, &options_, &plan), "problem.struct_size");
  }
  EXPECT_EQ(plan, nullptr);

  // Filled in up to the caller's size, zero past the library's.
  struct NewerInfo {
    vidsparse_plan_info known;
    std::int64_t unknown;
  } info{vidsparse_plan_info_init(), 5};
  info.known.struct_size = sizeof info;
  ASSERT_EQ(vidsparse_plan_get_info(c_, &info.known), VIDSPARSE_OK);
  EXPECT_EQ(info.unknown, 0);
  EXPECT_EQ(info.known.struct_size, sizeof info);
  info.known.struct_size = offsetof(vidsparse_plan_info, key_tokens);
  info.known.key_tokens = -9;
  ASSERT_EQ(vidsparse_plan_get_info(c_, &info.known), VIDSPARSE_OK);
  EXPECT_EQ(info.known.query_tokens, tokens_);
  EXPECT_EQ(info.known.key_tokens, -9);
}

TEST_F(CInterface, NullIsRefusedByName) {
  std::size_t bytes = 0;
  std::int64_t number = 0;
  vidsparse_plan* plan = nullptr;
  vidsparse_tile box = vidsparse_tile_init();
  const vidsparse_selection chosen = vidsparse_by_top_k(1);
  const vidsparse_pool_args pool = vidsparse_pool_args_init();
  const vidsparse_select_args select = vidsparse_select_args_init();
  const vidsparse_attend_args attend = vidsparse_attend_args_init();
  const vidsparse_forward_args forward = vidsparse_forward_args_init();
  const vidsparse_backward_args backward = vidsparse_backward_args_init();
  const vidsparse_mask mask{};
  expect_refused(vidsparse_plan_create(nullptr, nullptr, &plan), "problem");
  expect_refused(vidsparse_plan_create(&problem_, nullptr, nullptr), "plan");
  expect_refused(vidsparse_plan_get_info(nullptr, nullptr), "plan");
  expect_refused(vidsparse_plan_get_info(c_, nullptr), "info");
  expect_refused(vidsparse_plan_tile(nullptr, VIDSPARSE_QUERY, 0, &box), "plan");
  expect_refused(vidsparse_plan_tile(c_, VIDSPARSE_QUERY, 0, nullptr), "tile");
  expect_refused(vidsparse_plan_tile_at(c_, VIDSPARSE_QUERY, 1, 0, 0, 0, nullptr), "index");
  expect_refused(vidsparse_plan_top_k(c_, nullptr, &number), "selection");
  expect_refused(vidsparse_plan_top_k(c_, &chosen, nullptr), "top_k");
  expect_refused(vidsparse_top_k_of(0.5, 3, nullptr), "top_k");
  expect_refused(vidsparse_list_backends(nullptr, nullptr, nullptr, nullptr), "visit");
  expect_refused(vidsparse_list_cpu_isas(nullptr, nullptr), "visit");
  expect_refused(vidsparse_mask_from_bool(nullptr, &mask), "mask.words");
  expect_refused(vidsparse_mask_to_bool(nullptr, nullptr), "mask");
  expect_refused(vidsparse_mask_add_own_tile(nullptr, &mask), "plan");
  expect_refused(vidsparse_pool_workspace(nullptr, &pool, &bytes), "plan");
  expect_refused(vidsparse_pool_workspace(c_, nullptr, &bytes), "args");
  expect_refused(vidsparse_pool_workspace(c_, &pool, nullptr), "bytes");
  expect_refused(vidsparse_pool(nullptr, &pool, nullptr, 0, nullptr), "plan");
  expect_refused(vidsparse_select(nullptr, &select, nullptr, 0, nullptr), "plan");
  expect_refused(vidsparse_select(c_, &select, nullptr, 0, nullptr), "selection");
  expect_refused(vidsparse_attend(nullptr, &attend, nullptr, 0, nullptr), "plan");
  expect_refused(vidsparse_attend(c_, &attend, nullptr, 0, nullptr), "q");
  expect_refused(vidsparse_forward(nullptr, &forward, nullptr, 0, nullptr), "plan");
  expect_refused(vidsparse_forward(c_, &forward, nullptr, 0, nullptr), "selection");
  expect_refused(vidsparse_backward(nullptr, &backward, nullptr, 0, nullptr), "plan");
  vidsparse_plan_destroy(nullptr);
}

TEST_F(CInterface, MasksOfTensorsWithoutDataAreRefusedByName) {
  std::vector<std::uint64_t> words(8);
  const vidsparse_mask mask = vidsparse_dense_mask(words.data(), 1, 1, 2, 3);
  const vidsparse_tensor map = vidsparse_dense(nullptr, VIDSPARSE_U8, 4, 1, 1, 2, 3);
  std::vector<std::int32_t> numbers(6);
  const vidsparse_tensor lists = vidsparse_dense(numbers.data(), VIDSPARSE_I32, 4, 1, 1, 2, 3);
  const vidsparse_tensor counts = vidsparse_dense(numbers.data(), VIDSPARSE_I32, 3, 1, 1, 2, 0);
  vidsparse_tensor no_lists = lists;
  vidsparse_tensor no_counts = counts;
  no_lists.data = no_counts.data = nullptr;
  expect_refused(vidsparse_mask_from_bool(&map, &mask), "map");
  expect_refused(vidsparse_mask_to_bool(&mask, &map), "map");
  expect_refused(vidsparse_mask_from_indices(&no_lists, &counts, &mask), "indices");
  expect_refused(vidsparse_mask_from_indices(&lists, &no_counts, &mask), "counts");
  expect_refused(vidsparse_mask_to_indices(&mask, &no_lists, &counts), "indices");
  expect_refused(vidsparse_mask_to_indices(&mask, &lists, &no_counts), "counts");
  // Nothing is needed where there is nothing to point at.
  const vidsparse_tensor empty = vidsparse_dense(nullptr, VIDSPARSE_I32, 4, 1, 1, 2, 0);
  EXPECT_EQ(vidsparse_mask_from_indices(&empty, &counts, &mask), VIDSPARSE_OK)
      << vidsparse_last_error();
}

TEST_F(CInterface, ErrorsAreThoseOfTheCppInterface) {
  vidsparse_plan* plan = nullptr;
  vidsparse_problem bad = problem_;
  bad.tile = {3, 5, 7};
  EXPECT_EQ(vidsparse_plan_create(&bad, &options_, &plan), VIDSPARSE_INVALID_ARGUMENT);
  std::string expected;
  try {
    Problem problem = plan_->problem();
    problem.tile = {3, 5, 7};
    Plan refused(problem, {});
  } catch (const Error& error) {
    expected = error.what();
  }
  EXPECT_EQ(vidsparse_last_error(), expected);
  vidsparse_plan_options other = options_;
  other.backend = "no such backend";
  EXPECT_NE(vidsparse_plan_create(&problem_, &other, &plan), VIDSPARSE_OK);
  EXPECT_NE(std::string(vidsparse_last_error()).find("no such backend"), std::string::npos);
  other = options_;
  other.concurrency = 0;
  expect_refused(vidsparse_plan_create(&problem_, &other, &plan), "concurrency");
  bad = problem_;
  bad.dtype = 99;
  expect_refused(vidsparse_plan_create(&bad, &options_, &plan), "dtype");
  EXPECT_EQ(plan, nullptr);

  const std::string here = vidsparse_last_error();
  std::string there = "?";
  std::thread([&] { there = vidsparse_last_error(); }).join();
  EXPECT_EQ(there, "");
  EXPECT_EQ(vidsparse_last_error(), here);
  EXPECT_EQ(vidsparse_status_name(VIDSPARSE_UNSUPPORTED), std::string("unsupported"));
  EXPECT_EQ(vidsparse_status_name(-1), std::string("unknown status"));
  EXPECT_EQ(vidsparse_version(), std::string(version()));
}

TEST_F(CInterface, Lists) {
  struct Row {
    std::string name, reason;
    bool ok, on_request;
  };
  std::vector<Row> listed;
  const auto visit = [](void* context, const vidsparse_backend_info* info) {
    static_cast<std::vector<Row>*>(context)->push_back(
        {info->name, info->reason, info->can_run != 0, info->on_request != 0});
  };
  const auto expect_same_rows = [&](const std::vector<BackendInfo>& expected) {
    ASSERT_EQ(listed.size(), expected.size());
    for (std::size_t i = 0; i < listed.size(); ++i) {
      EXPECT_EQ(listed[i].name, expected[i].name);
      EXPECT_EQ(listed[i].reason, expected[i].verdict.reason);
      EXPECT_EQ(listed[i].ok, expected[i].verdict.ok);
      EXPECT_EQ(listed[i].on_request, expected[i].on_request);
    }
    listed.clear();
  };
  ASSERT_EQ(vidsparse_list_backends(nullptr, &problem_, visit, &listed), VIDSPARSE_OK);
  expect_same_rows(backends(Device{}, &plan_->problem()));
  ASSERT_EQ(vidsparse_list_cpu_isas(visit, &listed), VIDSPARSE_OK);
  expect_same_rows(cpu_isas());
}

}  // namespace
}  // namespace vidsparse
