#pragma once

#include <cstddef>

#include "core/backend.hpp"

namespace vidsparse::core {

/// A backend's kernels whose forward is its pool, select and attend, one after the other: a backend
/// gives the stages, and the forward with its memory follows.
class StagedKernels : public KernelSet {
 public:
  /// `setting` outlives this.
  explicit StagedKernels(const Setting& setting) : setting_(setting) {}

  // The other overloads would be hidden by the ones below.
  using KernelSet::workspace_bytes;

  std::size_t workspace_bytes(const ForwardArgs& args) const final;
  void forward(const ForwardArgs& args, Workspace workspace, void* stream) const final;

 private:
  struct Steps;
  Steps plan(const ForwardArgs& args, void* base) const;

  const Setting& setting_;
};

}  // namespace vidsparse::core
