#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "vidsparse/plan.hpp"

namespace vidsparse {

/// One backend's kernels for one problem. Plan has validated every argument before a call arrives
/// here: shapes, dtypes, the workspace's size and alignment, exactly one of sparsity and top_k.
/// Immutable and callable from several threads.
class KernelSet {
 public:
  virtual ~KernelSet() = default;

  virtual std::size_t workspace_bytes(const PoolArgs& args) const = 0;
  virtual std::size_t workspace_bytes(const SelectArgs& args) const = 0;
  virtual std::size_t workspace_bytes(const AttendArgs& args) const = 0;
  virtual std::size_t workspace_bytes(const ForwardArgs& args) const = 0;
  virtual std::size_t workspace_bytes(const BackwardArgs& args) const = 0;

  virtual void pool(const PoolArgs& args, Workspace workspace, void* stream) const = 0;
  virtual void select(const SelectArgs& args, Workspace workspace, void* stream) const = 0;
  virtual void attend(const AttendArgs& args, Workspace workspace, void* stream) const = 0;
  virtual void forward(const ForwardArgs& args, Workspace workspace, void* stream) const = 0;
  virtual void backward(const BackwardArgs& args, Workspace workspace, void* stream) const = 0;
};

namespace core {

/// What a backend needs to know of a plan; outlives its KernelSet.
struct Setting {
  Problem problem;
  TileLayout query;
  TileLayout key;
  Device device;
  ParallelFor parallel;
};

/// A row of the ordered list. Backends know core, never each other.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual const char* summary() const = 0;
  virtual bool on_request() const { return false; }
  virtual Device::Kind kind() const { return Device::Kind::cpu; }
  /// On the machine alone.
  virtual Verdict can_run(const Device& device) const = 0;
  /// On a valid problem; called after the other has said yes.
  virtual Verdict can_run(const Problem& problem, const Device& device) const = 0;
  virtual std::unique_ptr<const KernelSet> prepare(const Setting& setting) const = 0;
};

/// In order of preference; backends.cpp lists what was built.
const std::vector<const Backend*>& backend_list();

/// k for the selection over `layout`'s video tiles; throws Error naming `sparsity` or `top_k`.
std::int64_t resolve_top_k(const Selection& selection, const TileLayout& key);

}  // namespace core
}  // namespace vidsparse
