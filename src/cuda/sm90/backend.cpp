#include "cuda/sm90/backend.hpp"

#include "cuda/common/device.hpp"
#include "cuda/common/gpu_kernels.hpp"
#include "cuda/common/limits.hpp"
#include "cuda/sm90/attend.hpp"
#include "cuda/sm90/backward.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

class Sm90Kernels final : public GpuKernels {
 public:
  using GpuKernels::workspace_bytes;

  explicit Sm90Kernels(const core::Setting& setting) : GpuKernels(setting) {
    const CurrentDevice current(device());
    prepare_attend(context());
    prepare_backward(context());
  }

  std::size_t workspace_bytes(const BackwardArgs& args) const override {
    return backward_bytes(context(), args);
  }

  void backward(const BackwardArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(device());
    sm90::backward(context(), args, workspace, static_cast<cudaStream_t>(stream));
  }

 private:
  std::size_t attend_bytes(const AttendArgs& args) const override {
    return sm90::attend_bytes(context(), args);
  }
  void check(const AttendArgs& args) const override { check_attend(args); }
  TableWork attend_table(const AttendArgs& args, Workspace workspace) const override {
    return sm90::attend_table(context(), args, workspace);
  }
  void attend_filled(const AttendArgs& args, Workspace workspace,
                     cudaStream_t stream) const override {
    sm90::attend(context(), args, workspace, stream);
  }
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
