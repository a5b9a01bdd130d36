#include "cuda/sm90/backend.hpp"

#include "core/staged_kernels.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/limits.hpp"
#include "cuda/common/stages.hpp"
#include "cuda/sm90/attend.hpp"
#include "cuda/sm90/backward.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

class Sm90Kernels final : public core::StagedKernels {
 public:
  using core::StagedKernels::workspace_bytes;

  explicit Sm90Kernels(const core::Setting& setting) : StagedKernels(setting), context_(setting) {
    const CurrentDevice current(setting.device.index);
    prepare_select(context_);
    prepare_attend(context_);
    prepare_backward(context_);
  }

  std::size_t workspace_bytes(const PoolArgs&) const override { return 0; }
  std::size_t workspace_bytes(const SelectArgs& args) const override {
    return select_bytes(context_, args);
  }
  std::size_t workspace_bytes(const AttendArgs& args) const override {
    return attend_bytes(context_, args);
  }
  std::size_t workspace_bytes(const BackwardArgs& args) const override {
    return backward_bytes(context_, args);
  }

  void pool(const PoolArgs& args, Workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    cuda::pool(context_, args, static_cast<cudaStream_t>(stream));
  }
  void select(const SelectArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    cuda::select(context_, args, workspace, static_cast<cudaStream_t>(stream));
  }
  void attend(const AttendArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    sm90::attend(context_, args, workspace, static_cast<cudaStream_t>(stream));
  }
  void backward(const BackwardArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    sm90::backward(context_, args, workspace, static_cast<cudaStream_t>(stream));
  }

 private:
  Context context_;
};

class Sm90Backend final : public core::Backend {
 public:
  const char* name() const override { return "sm90"; }
  const char* summary() const override { return "CUDA kernels for Hopper (H100, H200)"; }
  Device::Kind kind() const override { return Device::Kind::cuda; }

  Verdict can_run(const Device& device) const override { return has_capability(device, 9, 0); }

  Verdict can_run(const Problem& problem, const Device& device) const override {
    const TileLayout query(problem.query, problem.tile);
    const TileLayout key(problem.key_sequence(), problem.tile);
    Verdict verdict = within_limits(problem, query, key);
    if (verdict.ok) verdict = can_attend(problem, query, key);
    return verdict.ok ? can_run(device) : verdict;
  }

  std::unique_ptr<const KernelSet> prepare(const core::Setting& setting) const override {
    return std::make_unique<Sm90Kernels>(setting);
  }
};

}  // namespace

const core::Backend& backend() {
  static const Sm90Backend instance;
  return instance;
}

}  // namespace vidsparse::cuda::sm90
