#include "cuda/sm80/backend.hpp"

#include "core/staged_kernels.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/limits.hpp"
#include "cuda/common/stages.hpp"
#include "cuda/sm80/attend.hpp"
#include "cuda/sm80/backward.hpp"

namespace vidsparse::cuda::sm80 {
namespace {

class Sm80Kernels final : public core::StagedKernels {
 public:
  using core::StagedKernels::workspace_bytes;

  explicit Sm80Kernels(const core::Setting& setting)
      : StagedKernels(setting), context_(setting), shape_(choose_shape(context_.shared_bytes)) {
    const CurrentDevice current(setting.device.index);
    prepare_select(context_);
    prepare_attend(context_, shape_);
    prepare_backward(context_, shape_);
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
    sm80::attend(context_, shape_, args, workspace, static_cast<cudaStream_t>(stream));
  }
  void backward(const BackwardArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    sm80::backward(context_, shape_, args, workspace, static_cast<cudaStream_t>(stream));
  }

 private:
  Context context_;
  Shape shape_;
};

class Sm80Backend final : public core::Backend {
 public:
  const char* name() const override { return "sm80"; }
  const char* summary() const override { return "CUDA kernels: " VIDSPARSE_SM80_BUILT; }
  Device::Kind kind() const override { return Device::Kind::cuda; }

  Verdict can_run(const Device& device) const override {
    return has_capability_from(device, 8, 0, VIDSPARSE_SM80_BUILT);
  }

  Verdict can_run(const Problem& problem, const Device& device) const override {
    const TileLayout query(problem.query, problem.tile);
    const TileLayout key(problem.key_sequence(), problem.tile);
    Verdict verdict = within_limits(problem, query, key);
    if (verdict.ok) verdict = can_attend(problem, query, key);
    return verdict.ok ? can_run(device) : verdict;
  }

  std::unique_ptr<const KernelSet> prepare(const core::Setting& setting) const override {
    return std::make_unique<Sm80Kernels>(setting);
  }
};

}  // namespace

const core::Backend& backend() {
  static const Sm80Backend instance;
  return instance;
}

}  // namespace vidsparse::cuda::sm80
