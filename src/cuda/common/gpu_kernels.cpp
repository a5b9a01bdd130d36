#include "cuda/common/gpu_kernels.hpp"

#include "core/forward_stages.hpp"
#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {

GpuKernels::GpuKernels(const core::Setting& setting) : context_(setting) {
  const CurrentDevice current(device());
  prepare_select(context_);
}

std::size_t GpuKernels::workspace_bytes(const PoolArgs&) const { return 0; }
std::size_t GpuKernels::workspace_bytes(const SelectArgs& args) const {
  core::Arena arena(nullptr);
  take_planes(arena, context_, static_cast<bool>(args.oc));
  return arena.used() + select_bytes(context_);
}
std::size_t GpuKernels::workspace_bytes(const AttendArgs& args) const { return attend_bytes(args); }

void GpuKernels::pool(const PoolArgs& args, Workspace, void* stream) const {
  const CurrentDevice current(device());
  cuda::pool(context_, args, static_cast<cudaStream_t>(stream));
}

void GpuKernels::select(const SelectArgs& args, Workspace workspace, void* stream) const {
  const CurrentDevice current(device());
  core::Arena arena(workspace.data);
  const PooledPlanes planes = take_planes(arena, context_, static_cast<bool>(args.oc));
  split_pooled(context_, args, planes, static_cast<cudaStream_t>(stream));
  cuda::select(context_, args, planes, arena.rest(select_bytes(context_)),
               static_cast<cudaStream_t>(stream));
}

void GpuKernels::attend(const AttendArgs& args, Workspace workspace, void* stream) const {
  const CurrentDevice current(device());
  check(args);
  fill_fragment_table(attend_table(args, workspace), static_cast<cudaStream_t>(stream));
  attend_filled(args, workspace, static_cast<cudaStream_t>(stream));
}

/// A forward's stages and their memory.
struct GpuKernels::Steps : core::ForwardStages {
  PoolArgs pool{};
  Workspace attend_space{};
  PooledPlanes planes{};
  Workspace select_space{};
  std::size_t bytes = 0;
};

GpuKernels::Steps GpuKernels::plan(const ForwardArgs& args, void* base) const {
  core::Arena arena(base);
  Steps steps{core::take_stages(arena, *context_.setting, args)};
  const std::size_t attend_size = attend_bytes(steps.attend);
  steps.attend_space = arena.rest(attend_size);
  arena.take<std::byte>(static_cast<std::int64_t>(attend_size));
  steps.pool.q = args.q;
  steps.pool.k = args.k;
  steps.pool.v = args.v;
  steps.pool.lengths = args.lengths;
  steps.planes = take_planes(arena, context_, !args.gate.is_none());
  steps.select_space = arena.rest(select_bytes(context_));
  steps.bytes = arena.used() + steps.select_space.bytes;
  return steps;
}

std::size_t GpuKernels::workspace_bytes(const ForwardArgs& args) const {
  return plan(args, nullptr).bytes;
}

void GpuKernels::forward(const ForwardArgs& args, Workspace workspace, void* pointer) const {
  const CurrentDevice current(device());
  const auto stream = static_cast<cudaStream_t>(pointer);
  const Steps steps = plan(args, workspace.data);
  check(steps.attend);
  pool_planes(context_, steps.pool, steps.planes, stream,
              attend_table(steps.attend, steps.attend_space));
  cuda::select(context_, steps.select, steps.planes, steps.select_space, stream);
  attend_filled(steps.attend, steps.attend_space, stream);
}

}  // namespace vidsparse::cuda
