#include "cuda/sm90/backend.hpp"

#include <algorithm>
#include <string>

#include "core/workspace.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/stages.hpp"
#include "cuda/sm90/attend.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

class Sm90Kernels final : public KernelSet {
 public:
  explicit Sm90Kernels(const core::Setting& setting) : context_(setting) {
    const CurrentDevice current(setting.device.index);
    prepare_select(context_);
    prepare_attend(context_);
  }

  std::size_t workspace_bytes(const PoolArgs&) const override { return 0; }
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
  std::size_t workspace_bytes(const BackwardArgs&) const override { return 0; }

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
  void forward(const ForwardArgs& args, Workspace workspace, void* stream) const override {
    const CurrentDevice current(context_.setting->device.index);
    core::Arena arena(workspace.data);
    const Forward steps = plan_forward(arena, args);
    const auto queue = static_cast<cudaStream_t>(stream);
    cuda::pool(context_, steps.pool, queue);
    cuda::select(context_, steps.select, steps.select_space, queue);
    sm90::attend(context_, steps.attend, steps.attend_space, queue);
  }
  void backward(const BackwardArgs&, Workspace, void*) const override {
    throw Error(ErrorCode::unsupported, "backward",
                "expected a backend with a backward pass, got sm90, which has the forward only");
  }

 private:
  struct Forward {
    PoolArgs pool;
    SelectArgs select;
    AttendArgs attend;
    Workspace select_space;
    Workspace attend_space;
    std::size_t bytes = 0;
  };

  /// The stages' arguments and memory. Only the mask and oc outlive selection: attend works where
  /// the pooled tensors and select's scratch were.
  Forward plan_forward(core::Arena& arena, const ForwardArgs& args) const {
    const std::int64_t batch = context_.batch();
    const std::int64_t heads = context_.heads();
    const std::int64_t key_heads = context_.key_heads();
    const std::int64_t d = context_.head_dim();
    const std::int64_t query_tiles = context_.query.tiles;
    const std::int64_t key_tiles = context_.key.tiles;
    const bool gated = !args.gate.is_none();
    Forward steps;
    SelectArgs& select = steps.select;
    select.lengths = args.lengths;
    select.selection = args.selection;
    select.scale = args.scale;
    select.mask = args.mask ? args.mask : arena.mask({batch, heads, query_tiles, key_tiles});
    if (gated) {
      select.oc = args.oc ? args.oc : arena.tensor(DType::f32, 4, {batch, heads, query_tiles, d});
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
    pool.kc = early.tensor(DType::f32, 4, {batch, key_heads, key_tiles, d});
    if (gated) {
      pool.v = args.v;
      pool.vc = early.tensor(DType::f32, 4, {batch, key_heads, key_tiles, d});
    }
    select.qc = pool.qc;
    select.kc = pool.kc;
    select.vc = pool.vc;
    steps.select_space = early.rest(select_bytes(context_, select));
    steps.bytes =
        std::max(early.used() + steps.select_space.bytes, arena.used() + steps.attend_space.bytes);
    return steps;
  }

  Context context_;
};

class Sm90Backend final : public core::Backend {
 public:
  const char* name() const override { return "sm90"; }
  const char* summary() const override { return "CUDA kernels for Hopper (H100, H200); forward"; }
  Device::Kind kind() const override { return Device::Kind::cuda; }

  Verdict can_run(const Device& device) const override { return has_capability(device, 9, 0); }

  Verdict can_run(const Problem& problem, const Device& device) const override {
    if (problem.dtype != DType::bf16 && problem.dtype != DType::f16) {
      return Verdict::no("dtype: expected bf16 or f16, got " + std::string(name_of(problem.dtype)));
    }
    if (problem.head_dim != 64 && problem.head_dim != 128) {
      return Verdict::no("head_dim: expected 64 or 128, got " + std::to_string(problem.head_dim));
    }
    // Kernels count blocks, heads and tiles in 31 bits.
    const TileLayout query(problem.query, problem.tile);
    const TileLayout key(problem.key_sequence(), problem.tile);
    const std::int64_t rows = std::max(query.tiles(), key.tiles()) + 1;
    if (problem.batch * problem.heads_q > INT32_MAX / rows) {
      return Verdict::no("heads_q: expected fewer than 2^31 rows of tiles in all, got " +
                         std::to_string(problem.batch) + " x " + std::to_string(problem.heads_q) +
                         " x " + std::to_string(rows - 1));
    }
    Verdict verdict = can_describe("query", query);
    if (verdict.ok) verdict = can_describe("key", key);
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
