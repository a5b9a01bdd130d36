#include "cuda/common/gpu_kernels.hpp"

#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {

GpuKernels::GpuKernels(const core::Setting& setting) : StagedKernels(setting), context_(setting) {
  const CurrentDevice current(device());
  prepare_select(context_);
}

std::size_t GpuKernels::workspace_bytes(const PoolArgs&) const { return 0; }
std::size_t GpuKernels::workspace_bytes(const SelectArgs& args) const {
  return select_bytes(context_, args);
}

void GpuKernels::pool(const PoolArgs& args, Workspace, void* stream) const {
  const CurrentDevice current(device());
  cuda::pool(context_, args, static_cast<cudaStream_t>(stream));
}
void GpuKernels::select(const SelectArgs& args, Workspace workspace, void* stream) const {
  const CurrentDevice current(device());
  cuda::select(context_, args, workspace, static_cast<cudaStream_t>(stream));
}

}  // namespace vidsparse::cuda
