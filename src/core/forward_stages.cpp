#include "core/forward_stages.hpp"

namespace vidsparse::core {

ForwardStages take_stages(Arena& arena, const Setting& setting, const ForwardArgs& args) {
  const Problem& problem = setting.problem;
  const std::int64_t query_tiles = setting.query.tiles();
  ForwardStages stages;
  SelectArgs& select = stages.select;
  select.lengths = args.lengths;
  select.selection = args.selection;
  select.scale = args.scale;
  select.mask =
      args.mask ? args.mask
                : arena.mask({problem.batch, problem.heads_q, query_tiles, setting.key.tiles()});
  if (!args.gate.is_none()) {
    select.oc = args.oc
                    ? args.oc
                    : arena.tensor(DType::f32, 4,
                                   {problem.batch, problem.heads_q, query_tiles, problem.head_dim});
    select.coarse_max = args.coarse_max;
    select.coarse_sum = args.coarse_sum;
  }
  stages.attend = {args.q,     args.k,      args.v,    args.lengths,
                   args.scale, select.mask, args.gate, TensorView(select.oc),
                   args.out,   args.lse};
  return stages;
}

}  // namespace vidsparse::core
