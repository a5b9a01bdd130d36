#include "cuda/sm80/backend.hpp"

#include "cuda/common/device.hpp"
#include "cuda/common/gpu_kernels.hpp"
#include "cuda/common/limits.hpp"
#include "cuda/sm80/attend.hpp"
#include "cuda/sm80/backward.hpp"

namespace vidsparse::cuda::sm80 {
namespace {

class Sm80Kernels final : public GpuKernels {
 public:
  using GpuKernels::workspace_bytes;

  explicit Sm80Kernels(const core::Setting& setting)
      : GpuKernels(setting), shape_(choose_shape(context().shared_bytes)) {
    const CurrentDevice current(device());
    prepare_attend(context(), shape_);
    prepare_backward(context(), shape_);
  }

  std::size_t workspace_bytes(const BackwardArgs& args) const override {
    return backward_bytes(context(), args);
  }

  void backward(const BackwardArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(device());
    sm80::backward(context(), shape_, args, workspace, static_cast<cudaStream_t>(stream));
  }

 private:
  std::size_t attend_bytes(const AttendArgs& args) const override {
    return sm80::attend_bytes(context(), args);
  }
  void check(const AttendArgs& args) const override { check_attend(args); }
  TableWork attend_table(const AttendArgs& args, Workspace workspace) const override {
    return sm80::attend_table(context(), args, workspace);
  }
  void attend_filled(const AttendArgs& args, Workspace workspace,
                     cudaStream_t stream) const override {
    sm80::attend(context(), shape_, args, workspace, stream);
  }

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
