#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "core/backend.hpp"
#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table.cuh"

namespace vidsparse::cuda {

/// What the kernels of all architectures share: the context, pool, select and how a forward is made
/// of them and of attend. A backend gives attend and backward.
///
/// A forward is three launches: pool, which also fills attend's table, select, attend.
class GpuKernels : public KernelSet {
 public:
  using KernelSet::workspace_bytes;

  std::size_t workspace_bytes(const PoolArgs& args) const final;
  std::size_t workspace_bytes(const SelectArgs& args) const final;
  std::size_t workspace_bytes(const AttendArgs& args) const final;
  std::size_t workspace_bytes(const ForwardArgs& args) const final;
  void pool(const PoolArgs& args, Workspace workspace, void* stream) const final;
  void select(const SelectArgs& args, Workspace workspace, void* stream) const final;
  void attend(const AttendArgs& args, Workspace workspace, void* stream) const final;
  void forward(const ForwardArgs& args, Workspace workspace, void* stream) const final;

 protected:
  /// `setting` outlives this.
  explicit GpuKernels(const core::Setting& setting);

  const Context& context() const { return context_; }
  int device() const { return context_.setting->device.index; }

 private:
  struct Steps;
  Steps plan(const ForwardArgs& args, void* base) const;

  virtual std::size_t attend_bytes(const AttendArgs& args) const = 0;
  /// Throws Error for what attend refuses by its arguments, before anything is written.
  virtual void check(const AttendArgs& args) const = 0;
  /// What must be filled before attend_filled is called with the same workspace.
  virtual TableWork attend_table(const AttendArgs& args, Workspace workspace) const = 0;
  virtual void attend_filled(const AttendArgs& args, Workspace workspace,
                             cudaStream_t stream) const = 0;

  Context context_;
};

}  // namespace vidsparse::cuda
