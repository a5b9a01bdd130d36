// A call does nothing a CUDA graph cannot hold, and may be captured and replayed; two runs give the
// same bits.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "device/device_memory.hpp"
#include "support/backend_run.hpp"
#include "support/gpu_test.hpp"

namespace vidsparse::testing {
namespace {

using tools::DeviceMemory;

void require(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

class CudaGraph : public GpuTest {};

/// Runs a forward and its backward directly or by replaying their graph; `results` receives what
/// they wrote.
void run_both(const std::string& backend, const RandomProblem& r, bool captured, Results& results) {
  const Plan plan(r.problem(), {kGpu, backend, {}});
  DeviceMemory memory(kGpu);
  copy_to_device(r, results, memory);
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
  if (!r.gate.is_none()) {
    args.oc = memory.at(results.oc.ref);
    args.coarse_max = memory.at(results.coarse_max.ref);
    args.coarse_sum = memory.at(results.coarse_sum.ref);
  }
  BackwardArgs backward = backward_of(args);
  backward.dout = memory.at(r.dout.ref);
  if (r.with_dlse) backward.dlse = memory.at(r.dlse.ref);
  backward.dq = memory.at(results.dq);
  backward.dk = memory.at(results.dk);
  backward.dv = memory.at(results.dv);
  if (r.gate.is_tensor()) backward.dgate = memory.at(results.dgate.ref);
  const std::size_t bytes = std::max(plan.workspace_bytes(args), plan.workspace_bytes(backward));
  Poisoned scratch(bytes);
  std::byte* workspace = scratch.give_bytes(bytes);
  memory.add(scratch.storage().data(), scratch.storage().size());
  const Workspace space{memory.at(workspace), bytes};
  const auto run = [&](cudaStream_t stream) {
    plan.forward(args, space, stream);
    plan.backward(backward, space, stream);
  };
  if (!captured) {
    run(nullptr);
    memory.fetch();
    return;
  }
  cudaStream_t stream{};
  cudaGraph_t graph{};
  cudaGraphExec_t ready{};
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  run(stream);
  require(cudaStreamEndCapture(stream, &graph));
  std::size_t nodes = 0;
  require(cudaGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_LE(nodes, 3U + 6U) << "launches of a forward and a backward";
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
    run_both(GetParam(), *problem, false, direct);
    run_both(GetParam(), *problem, true, replayed);
    const auto expected = direct.memory();
    const auto got = replayed.memory();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(expected[i].second->same_as(*got[i].second)) << expected[i].first;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaGraph, ::testing::Values("sm90", "sm80"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace vidsparse::testing
