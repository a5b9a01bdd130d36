#include "core/staged_kernels.hpp"

#include <algorithm>
#include <array>

#include "core/forward_stages.hpp"

namespace vidsparse::core {

/// The stages' arguments and memory.
struct StagedKernels::Steps : ForwardStages {
  PoolArgs pool{};
  Workspace pool_space{};
  Workspace select_space{};
  Workspace attend_space{};
  std::size_t bytes = 0;
};

/// Only the mask and oc outlive selection, so attend works where the pooled tensors and the scratch
/// of the first two stages were.
StagedKernels::Steps StagedKernels::plan(const ForwardArgs& args, void* base) const {
  const Problem& problem = setting_.problem;
  const std::array<std::int64_t, 4> by_query = {problem.batch, problem.heads_q,
                                                setting_.query.tiles(), problem.head_dim};
  const std::array<std::int64_t, 4> by_key = {problem.batch, problem.key_heads(),
                                              setting_.key.tiles(), problem.head_dim};
  Arena arena(base);
  Steps steps{take_stages(arena, setting_, args)};
  steps.attend_space = arena.rest(workspace_bytes(steps.attend));

  Arena early = arena;
  PoolArgs& pool = steps.pool;
  pool.lengths = args.lengths;
  pool.q = args.q;
  pool.k = args.k;
  pool.qc = early.tensor(DType::f32, 4, by_query);
  pool.kc = early.tensor(DType::f32, 4, by_key);
  if (!args.gate.is_none()) {
    pool.v = args.v;
    pool.vc = early.tensor(DType::f32, 4, by_key);
  }
  steps.select.qc = pool.qc;
  steps.select.kc = pool.kc;
  steps.select.vc = pool.vc;
  steps.pool_space = early.rest(workspace_bytes(pool));
  steps.select_space = early.rest(workspace_bytes(steps.select));
  steps.bytes = std::max(early.used() + std::max(steps.pool_space.bytes, steps.select_space.bytes),
                         arena.used() + steps.attend_space.bytes);
  return steps;
}

std::size_t StagedKernels::workspace_bytes(const ForwardArgs& args) const {
  return plan(args, nullptr).bytes;
}

void StagedKernels::forward(const ForwardArgs& args, Workspace workspace, void* stream) const {
  const Steps steps = plan(args, workspace.data);
  pool(steps.pool, steps.pool_space, stream);
  select(steps.select, steps.select_space, stream);
  attend(steps.attend, steps.attend_space, stream);
}

}  // namespace vidsparse::core
