#include "cpu/backend.hpp"

#include <algorithm>
#include <cstddef>
#include <string>

#include "core/workspace.hpp"
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

class CpuKernelSet final : public KernelSet {
 public:
  CpuKernelSet(const core::Setting& setting, const Kernels& kernels) : context_(setting, kernels) {}

  std::size_t workspace_bytes(const PoolArgs& args) const override {
    return pool_bytes(context_, args);
  }
  std::size_t workspace_bytes(const SelectArgs& args) const override {
    return select_bytes(context_, args);
  }
  std::size_t workspace_bytes(const AttendArgs& args) const override {
    return attend_bytes(context_, args);
  }
  std::size_t workspace_bytes(const ForwardArgs& args) const override {
    core::Arena arena(nullptr);
    return plan_forward(arena, args).bytes;
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
  void forward(const ForwardArgs& args, Workspace workspace, void*) const override {
    core::Arena arena(workspace.data);
    const Forward steps = plan_forward(arena, args);
    cpu::pool(context_, steps.pool, steps.pool_space);
    cpu::select(context_, steps.select, steps.select_space);
    cpu::attend(context_, steps.attend, steps.attend_space);
  }
  void backward(const BackwardArgs& args, Workspace workspace, void*) const override {
    cpu::backward(context_, args, workspace);
  }

 private:
  struct Forward {
    PoolArgs pool;
    SelectArgs select;
    AttendArgs attend;
    Workspace pool_space;
    Workspace select_space;
    Workspace attend_space;
    std::size_t bytes = 0;
  };

  /// The three stages' arguments and memory. Only the mask and oc outlive selection, so attend
  /// works where the pooled tensors and the scratch of the first two stages were.
  Forward plan_forward(core::Arena& arena, const ForwardArgs& args) const {
    const std::int64_t batch = context_.batch();
    const std::int64_t heads = context_.heads();
    const std::int64_t d = context_.head_dim();
    const std::int64_t query_tiles = context_.query.tiles();
    const std::int64_t key_tiles = context_.key.tiles();
    const bool gated = !args.gate.is_none();
    const auto or_take = [&](const TensorRef& given, int rank, std::array<std::int64_t, 4> sides) {
      return given ? given : arena.tensor(DType::f32, rank, sides);
    };
    Forward steps;
    SelectArgs& select = steps.select;
    select.lengths = args.lengths;
    select.selection = args.selection;
    select.scale = args.scale;
    select.mask = args.mask ? args.mask : arena.mask({batch, heads, query_tiles, key_tiles});
    if (gated) {
      select.oc = or_take(args.oc, 4, {batch, heads, query_tiles, d});
      select.coarse_max = args.coarse_max;
      select.coarse_sum = args.coarse_sum;
    }
    AttendArgs& attend = steps.attend;
    attend = {args.q,     args.k,      args.v,    args.lengths,
              args.scale, select.mask, args.gate, TensorView(select.oc),
              args.out,   args.lse};
    steps.attend_space = arena.rest(attend_bytes(context_, attend));

    core::Arena early = arena;
    PoolArgs& pool = steps.pool;
    pool.lengths = args.lengths;
    pool.q = args.q;
    pool.k = args.k;
    pool.qc = early.tensor(DType::f32, 4, {batch, heads, query_tiles, d});
    pool.kc = early.tensor(DType::f32, 4, {batch, context_.key_heads(), key_tiles, d});
    if (gated) {
      pool.v = args.v;
      pool.vc = early.tensor(DType::f32, 4, {batch, context_.key_heads(), key_tiles, d});
    }
    select.qc = pool.qc;
    select.kc = pool.kc;
    select.vc = pool.vc;
    steps.pool_space = early.rest(pool_bytes(context_, pool));
    steps.select_space = early.rest(select_bytes(context_, select));
    const std::size_t stage = std::max(steps.pool_space.bytes, steps.select_space.bytes);
    steps.bytes = std::max(early.used() + stage, arena.used() + steps.attend_space.bytes);
    return steps;
  }

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
