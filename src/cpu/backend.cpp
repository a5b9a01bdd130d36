#include "cpu/backend.hpp"

#include <cstddef>
#include <string>

#include "core/staged_kernels.hpp"
#include "cpu/isa.hpp"
#include "cpu/stages.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse {

std::vector<BackendInfo> cpu_isas() {
  std::vector<BackendInfo> list;
  for (const cpu::Isa& isa : cpu::isas()) {
    list.push_back({isa.name, isa.summary, false, isa.verdict});
  }
  return list;
}

}  // namespace vidsparse

namespace vidsparse::cpu {
namespace {

class CpuKernelSet final : public core::StagedKernels {
 public:
  using core::StagedKernels::workspace_bytes;

  CpuKernelSet(const core::Setting& setting, const Kernels& kernels)
      : StagedKernels(setting), context_(setting, kernels) {}

  std::size_t workspace_bytes(const PoolArgs& args) const override {
    return pool_bytes(context_, args);
  }
  std::size_t workspace_bytes(const SelectArgs& args) const override {
    return select_bytes(context_, args);
  }
  std::size_t workspace_bytes(const AttendArgs& args) const override {
    return attend_bytes(context_, args);
  }
  std::size_t workspace_bytes(const BackwardArgs& args) const override {
    return backward_bytes(context_, args);
  }

  void pool(const PoolArgs& args, Workspace workspace, void*) const override {
    cpu::pool(context_, args, workspace);
  }
  void select(const SelectArgs& args, Workspace workspace, void*) const override {
    cpu::select(context_, args, workspace);
  }
  void attend(const AttendArgs& args, Workspace workspace, void*) const override {
    cpu::attend(context_, args, workspace);
  }
  void backward(const BackwardArgs& args, Workspace workspace, void*) const override {
    cpu::backward(context_, args, workspace);
  }

 private:
  Context context_;
};

class CpuBackend final : public core::Backend {
 public:
  const char* name() const override { return "cpu"; }
  const char* summary() const override { return "AMX, AVX-512, AVX2 or plain C++, all cores"; }

  Verdict can_run(const Device& device) const override {
    if (device.kind != Device::Kind::cpu) return Verdict::no("the device is " + device.to_string());
    try {
      return Verdict::yes(choose_kernels().name);
    } catch (const Error& error) {
      return Verdict::no(error.what());
    }
  }

  Verdict can_run(const Problem& problem, const Device& device) const override {
    if (problem.dtype == DType::f64) {
      return Verdict::no("dtype: f64 is computed by the reference backend only");
    }
    if (problem.head_dim % 16 != 0 || problem.head_dim > kMaxHeadDim) {
      return Verdict::no("head_dim: expected a multiple of 16 up to 256, got " +
                         std::to_string(problem.head_dim));
    }
    // Tiles are numbered, and a row of scores counted, in 32 bits.
    constexpr std::int64_t kMostTiles = std::int64_t{1} << 30;
    for (const Sequence& side : {problem.query, problem.key_sequence()}) {
      const std::int64_t tiles = TileLayout(side, problem.tile).tiles();
      if (tiles > kMostTiles) {
        return Verdict::no("sequence: expected up to " + std::to_string(kMostTiles) +
                           " tiles, got " + std::to_string(tiles));
      }
    }
    return can_run(device);
  }

  std::unique_ptr<const KernelSet> prepare(const core::Setting& setting) const override {
    return std::make_unique<CpuKernelSet>(setting, choose_kernels());
  }
};

}  // namespace

const core::Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace vidsparse::cpu
