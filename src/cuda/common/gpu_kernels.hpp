#pragma once

#include <cstddef>

#include "core/staged_kernels.hpp"
#include "cuda/common/context.hpp"

namespace vidsparse::cuda {

/// What the kernels of all architectures share: the context, pool and select. A backend gives
/// attend and backward.
class GpuKernels : public core::StagedKernels {
 public:
  using core::StagedKernels::workspace_bytes;

  std::size_t workspace_bytes(const PoolArgs& args) const final;
  std::size_t workspace_bytes(const SelectArgs& args) const final;
  void pool(const PoolArgs& args, Workspace workspace, void* stream) const final;
  void select(const SelectArgs& args, Workspace workspace, void* stream) const final;

 protected:
  /// `setting` outlives this.
  explicit GpuKernels(const core::Setting& setting);

  const Context& context() const { return context_; }
  int device() const { return context_.setting->device.index; }

 private:
  Context context_;
};

}  // namespace vidsparse::cuda
