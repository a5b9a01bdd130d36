// A call does nothing a CUDA graph cannot hold, and may be captured and replayed; two runs give the
// same bits.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "device/device_memory.hpp"
#include "support/backend_run.hpp"
#include "support/gpu_test.hpp"

namespace vidsparse::testing {
namespace {

using tools::DeviceMemory;

void require(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

class CudaGraph : public GpuTest {};

/// Runs a forward directly or by replaying its graph; `results` receives what it wrote.
void run_forward(const std::string& backend, const RandomProblem& r, bool captured,
                 Results& results) {
  const Plan plan(r.problem(), {kGpu, backend, {}});
  DeviceMemory memory(kGpu);
  for (const PoisonedTensor* input : {&r.q, &r.k, &r.v, &r.gate_tensor}) {
    memory.add(input->memory.storage().data(), input->memory.storage().size());
  }
  for (const auto* lengths : {&r.query_lengths, &r.key_lengths}) {
    memory.add(lengths->data(), lengths->size() * sizeof(std::int32_t));
  }
  memory.add(r.always.view().words, static_cast<std::size_t>(r.always.shape().words()) * 8);
  for (Poisoned* output : {&results.out.memory, &results.lse.memory, &results.mask_words}) {
    memory.add_written(output->storage().data(), output->storage().size());
  }
  ForwardArgs args;
  args.q = memory.at(r.q.ref);
  args.k = memory.at(r.k.ref);
  args.v = memory.at(r.v.ref);
  args.lengths = {memory.at(r.lengths.query), memory.at(r.lengths.key)};
  args.selection = r.selection;
  args.selection.always = memory.at(r.selection.always);
  args.scale = r.scale;
  args.gate = r.gate.is_tensor() ? Gate(memory.at(r.gate.tensor())) : r.gate;
  args.out = memory.at(results.out.ref);
  args.lse = memory.at(results.lse.ref);
  args.mask = memory.at(results.mask);
  const std::size_t bytes = plan.workspace_bytes(args);
  Poisoned scratch(bytes);
  std::byte* workspace = scratch.give_bytes(bytes);
  memory.add(scratch.storage().data(), scratch.storage().size());
  const Workspace space{memory.at(workspace), bytes};
  if (!captured) {
    plan.forward(args, space);
    memory.fetch();
    return;
  }
  cudaStream_t stream{};
  cudaGraph_t graph{};
  cudaGraphExec_t ready{};
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  plan.forward(args, space, stream);
  require(cudaStreamEndCapture(stream, &graph));
  std::size_t nodes = 0;
  require(cudaGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_LE(nodes, 5U) << "launches of a forward";
  require(cudaGraphInstantiate(&ready, graph, 0));
  for (int replay = 0; replay < 2; ++replay) require(cudaGraphLaunch(ready, stream));
  memory.fetch();
  require(cudaGraphExecDestroy(ready));
  require(cudaGraphDestroy(graph));
  require(cudaStreamDestroy(stream));
}

TEST_P(CudaGraph, ReplaysToTheSameBits) {
  const std::uint64_t seed = test_seed();
  const std::int64_t count = test_problems(120) / 4 + 1;
  for (std::int64_t n = 0; n < count; ++n) {
    const auto problem = random_problem(seed + static_cast<std::uint64_t>(n), {.gpu = true});
    SCOPED_TRACE(problem->to_string());
    Results direct(*problem);
    Results replayed(*problem);
    run_forward(GetParam(), *problem, false, direct);
    run_forward(GetParam(), *problem, true, replayed);
    ASSERT_TRUE(direct.out.memory.same_as(replayed.out.memory)) << "out";
    ASSERT_TRUE(direct.lse.memory.same_as(replayed.lse.memory)) << "lse";
    ASSERT_TRUE(direct.mask_words.same_as(replayed.mask_words)) << "mask";
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaGraph, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
