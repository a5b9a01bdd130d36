// What the CUDA backends refuse, and how it says so. Problems are looked at without a device.

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "cuda/sm80/backend.hpp"
#include "cuda/sm90/backend.hpp"
#include "device/device_memory.hpp"
#include "support/gpu_test.hpp"
#include "support/poisoned.hpp"
#include "vidsparse/error.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse::testing {
namespace {

using tools::DeviceMemory;

class CudaRefusal : public ::testing::TestWithParam<const core::Backend*> {
 protected:
  static std::string refusal_of(const Problem& problem) {
    const Verdict verdict = GetParam()->can_run(problem, kGpu);
    EXPECT_FALSE(verdict.ok);
    return verdict.reason;
  }
};

TEST_P(CudaRefusal, NamesWhatAProblemLacks) {
  Problem problem;
  problem.query = Sequence{Video{4, 8, 8}};
  problem.dtype = DType::f32;
  EXPECT_EQ(refusal_of(problem), "dtype: expected bf16 or f16, got f32");
  problem.dtype = DType::bf16;
  problem.head_dim = 96;
  EXPECT_EQ(refusal_of(problem), "head_dim: expected 64 or 128, got 96");
  problem.head_dim = 64;
  problem.key = Sequence(std::vector<Segment>(9, Plain{5}));
  EXPECT_EQ(refusal_of(problem), "key: expected at most 8 segments with tokens, got 9");
  problem.key = Sequence{Video{5000, 4, 4}};
  EXPECT_EQ(refusal_of(problem),
            "key: expected videos of at most 4096 x 65536 (T x H), got Video(5000x4x4)");
}

TEST(Sm90Refusal, NamesHeadsBeyondAnOrdersBits) {
  Problem problem;
  problem.query = Sequence{Video{1, 1, 1}};
  problem.dtype = DType::bf16;
  problem.batch = 4;
  problem.heads_q = 1 << 26;
  const Verdict verdict = cuda::sm90::backend().can_run(problem, kGpu);
  EXPECT_EQ(verdict.reason,
            "heads_q: expected fewer than 2^28 heads of all batch entries, got 4 x 67108864");
  problem.heads_q -= 1;
  EXPECT_EQ(cuda::sm90::backend().can_run(problem, kGpu).reason.find("heads_q"), std::string::npos);
}

TEST_P(CudaRefusal, NamesTheDevice) {
  EXPECT_EQ(GetParam()->can_run(Device{}).reason, "the device is cpu");
  const Verdict far = GetParam()->can_run(Device{Device::Kind::cuda, 999});
  EXPECT_FALSE(far.ok);
  EXPECT_NE(far.reason.find("expected"), std::string::npos) << far.reason;
}

INSTANTIATE_TEST_SUITE_P(All, CudaRefusal,
                         ::testing::Values(&cuda::sm90::backend(), &cuda::sm80::backend()),
                         [](const auto& backend) { return std::string(backend.param->name()); });

class CudaRefusalOnDevice : public GpuTest {};

using Shape = std::array<std::int64_t, 4>;
constexpr Shape kHeadsOf136 = {256 * 272, 272, 136, 1};  // 16-byte rows, heads not 64 n apart

/// Tensors whose rows cannot be copied: refused by name before anything runs, pool and select of a
/// whole forward included.
TEST_P(CudaRefusalOnDevice, NamesTheTensor) {
  Problem problem;
  problem.query = Sequence{Video{4, 8, 8}};
  problem.heads_q = 2;
  const Plan plan(problem, {kGpu, GetParam(), {}});
  const Shape shape = {1, 256, 2, 128};
  const auto refused = [&](const std::string& name, const Shape& strides, std::int64_t first) {
    PoisonedTensor good(DType::bf16, 4, shape);
    PoisonedTensor bad(DType::bf16, 4, shape, strides, first);
    PoisonedTensor out(DType::bf16, 4, shape);
    Poisoned mask_memory(static_cast<std::size_t>(plan.mask_shape().words()) * 8);
    DeviceMemory memory(kGpu);
    for (Poisoned* part : {&good.memory, &bad.memory}) {
      memory.add(part->storage().data(), part->storage().size());
    }
    for (Poisoned* part : {&out.memory, &mask_memory}) {
      memory.add_written(part->storage().data(), part->storage().size());
    }
    ForwardArgs args;
    args.q = args.k = args.v = memory.at(good.ref);
    (name == "q" ? args.q : name == "k" ? args.k : args.v) = memory.at(bad.ref);
    args.out = memory.at(out.ref);
    args.mask = {static_cast<std::uint64_t*>(memory.at(mask_memory.data())), plan.mask_shape()};
    args.selection.top_k = 1;
    AttendArgs attend;
    attend.q = args.q, attend.k = args.k, attend.v = args.v;
    attend.mask = args.mask;
    attend.out = args.out;
    const std::size_t bytes = std::max(plan.workspace_bytes(args), plan.workspace_bytes(attend));
    const Workspace workspace = memory.scratch(bytes);
    const auto expect_refusal = [&](const auto& call) {
      try {
        call();
        ADD_FAILURE() << name << " was taken";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
        EXPECT_EQ(error.argument(), name) << error.what();
      }
    };
    expect_refusal([&] { plan.attend(attend, workspace); });
    expect_refusal([&] { plan.forward(args, workspace); });
    memory.fetch();
    EXPECT_EQ(*static_cast<const std::uint16_t*>(out.ref.data), 0xFFFF) << "something ran";
    EXPECT_EQ(*mask_memory.data(), std::byte{0xFF}) << "something ran";
  };
  for (const char* name : {"q", "k", "v"}) {
    refused(name, strides_of(Order::padded, shape), 0);
    refused(name, strides_of(Order::bshd, shape), 3);
    // q too, which only the backward copies in bulk: a training run must not fail there first.
    if (GetParam() == "sm90") refused(name, kHeadsOf136, 0);
  }
}

/// The same of a backward, which reads q and dout by bulk copies too.
TEST_P(CudaRefusalOnDevice, NamesTheTensorOfABackward) {
  Problem problem;
  problem.query = Sequence{Video{4, 8, 8}};
  problem.heads_q = 2;
  const Plan plan(problem, {kGpu, GetParam(), {}});
  const Shape shape = {1, 256, 2, 128};
  const auto refused = [&](const std::string& name, const Shape& strides, std::int64_t first) {
    PoisonedTensor good(DType::bf16, 4, shape);
    PoisonedTensor bad(DType::bf16, 4, shape, strides, first);
    PoisonedTensor dq(DType::bf16, 4, shape);
    PoisonedTensor lse(DType::f32, 3, {1, 2, 256});
    Poisoned mask_memory(static_cast<std::size_t>(plan.mask_shape().words()) * 8);
    DeviceMemory memory(kGpu);
    for (Poisoned* part : {&good.memory, &bad.memory, &lse.memory, &mask_memory}) {
      memory.add(part->storage().data(), part->storage().size());
    }
    memory.add_written(dq.memory.storage().data(), dq.memory.storage().size());
    BackwardArgs args;
    args.q = args.k = args.v = args.out = args.dout = memory.at(good.ref);
    args.dq = args.dk = args.dv = memory.at(dq.ref);
    args.lse = memory.at(lse.ref);
    args.mask = {static_cast<std::uint64_t*>(memory.at(mask_memory.data())), plan.mask_shape()};
    for (const auto& [input, tensor] :
         {std::pair{"q", &args.q}, std::pair{"k", &args.k}, std::pair{"v", &args.v},
          std::pair{"out", &args.out}, std::pair{"dout", &args.dout}}) {
      if (name == input) *tensor = memory.at(bad.ref);
    }
    for (const auto& [output, tensor] :
         {std::pair{"dq", &args.dq}, std::pair{"dk", &args.dk}, std::pair{"dv", &args.dv}}) {
      if (name == output) *tensor = memory.at(bad.ref);
    }
    const std::size_t bytes = plan.workspace_bytes(args);
    Poisoned workspace(bytes);
    std::byte* space = workspace.give_bytes(bytes);
    memory.add_written(workspace.storage().data(), workspace.storage().size());
    try {
      plan.backward(args, {memory.at(space), bytes});
      ADD_FAILURE() << name << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
      EXPECT_EQ(error.argument(), name) << error.what();
    }
    memory.fetch();
    EXPECT_EQ(*space, std::byte{0xFF}) << "something ran";
  };
  for (const char* name : {"q", "k", "v", "dout", "out", "dq", "dk", "dv"}) {
    refused(name, strides_of(Order::padded, shape), 0);
    refused(name, strides_of(Order::bshd, shape), 3);
  }
  if (GetParam() != "sm90") return;
  for (const char* name : {"q", "k", "v", "dout"}) refused(name, kHeadsOf136, 0);
}

INSTANTIATE_TEST_SUITE_P(All, CudaRefusalOnDevice, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
