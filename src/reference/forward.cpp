#include <algorithm>

#include "core/workspace.hpp"
#include "reference/op.hpp"
#include "reference/rows.hpp"

namespace vidsparse::reference {
namespace {

/// What lies between the stages, in the arithmetic's own type.
struct Between {
  TensorRef qc, kc, vc, oc, coarse_max, coarse_sum;
  TileMaskRef mask;

  Between(core::Arena& arena, const core::Setting& setting, DType dtype, const ForwardArgs& args) {
    const Problem& problem = setting.problem;
    const std::int64_t query_tiles = setting.query.tiles();
    const std::int64_t key_tiles = setting.key.tiles();
    const std::int64_t depth = problem.head_dim;
    qc = arena.tensor(dtype, 4, {problem.batch, problem.heads_q, query_tiles, depth});
    kc = arena.tensor(dtype, 4, {problem.batch, problem.key_heads(), key_tiles, depth});
    if (!args.gate.is_none()) {
      vc = arena.tensor(dtype, 4, {problem.batch, problem.key_heads(), key_tiles, depth});
      oc = arena.tensor(dtype, 4, {problem.batch, problem.heads_q, query_tiles, depth});
    }
    coarse_max = args.coarse_max;
    coarse_sum = args.coarse_sum;
    mask = args.mask;
    if (!mask) mask = arena.mask({problem.batch, problem.heads_q, query_tiles, key_tiles});
  }
};

}  // namespace

template <class Arithmetic>
std::size_t Op<Arithmetic>::workspace_bytes(const ForwardArgs& args) const {
  core::Arena arena(nullptr);
  Between(arena, setting_, dtype_of<Scalar>(), args);
  return arena.used() + std::max({workspace_bytes(PoolArgs{}), workspace_bytes(SelectArgs{}),
                                  workspace_bytes(AttendArgs{})});
}

template <class Arithmetic>
void Op<Arithmetic>::forward(const ForwardArgs& args, Workspace workspace) const {
  core::Arena arena(workspace.data);
  const Between between(arena, setting_, dtype_of<Scalar>(), args);
  const Workspace rest = arena.rest(workspace.bytes - arena.used());

  PoolArgs pooled;
  pooled.q = args.q;
  pooled.k = args.k;
  pooled.v = args.v;
  pooled.lengths = args.lengths;
  pooled.qc = between.qc;
  pooled.kc = between.kc;
  pooled.vc = between.vc;
  pool(pooled, rest);

  SelectArgs selected;
  selected.qc = between.qc;
  selected.kc = between.kc;
  selected.vc = between.vc;
  selected.lengths = args.lengths;
  selected.selection = args.selection;
  selected.scale = args.scale;
  selected.mask = between.mask;
  selected.oc = between.oc;
  selected.coarse_max = between.coarse_max;
  selected.coarse_sum = between.coarse_sum;
  select(selected, rest);

  AttendArgs attended;
  attended.q = args.q;
  attended.k = args.k;
  attended.v = args.v;
  attended.lengths = args.lengths;
  attended.scale = args.scale;
  attended.mask = between.mask;
  attended.gate = args.gate;
  attended.oc = between.oc;
  attended.out = args.out;
  attended.lse = args.lse;
  attend(attended, rest);

  // The caller's copy is rounded to its dtype; `out` was made from the unrounded one.
  if (!args.oc || between.oc.data == nullptr) return;
  for (std::int64_t row = 0; row < args.oc.elements() / args.oc.shape[3]; ++row) {
    const std::int64_t tile = row % args.oc.shape[2];
    const std::int64_t head = row / args.oc.shape[2] % args.oc.shape[1];
    const std::int64_t batch = row / args.oc.shape[2] / args.oc.shape[1];
    const std::int64_t from = between.oc.offset(batch, head, tile);
    const std::int64_t to = args.oc.offset(batch, head, tile);
    for (std::int64_t d = 0; d < args.oc.shape[3]; ++d) {
      store(args.oc, to + d, load<Scalar>(between.oc, from + d));
    }
  }
}

template std::size_t Op<ExactArithmetic<double>>::workspace_bytes(const ForwardArgs&) const;
template void Op<ExactArithmetic<double>>::forward(const ForwardArgs&, Workspace) const;
template std::size_t Op<ExactArithmetic<float>>::workspace_bytes(const ForwardArgs&) const;
template void Op<ExactArithmetic<float>>::forward(const ForwardArgs&, Workspace) const;
template std::size_t Op<PlainArithmetic>::workspace_bytes(const ForwardArgs&) const;
template void Op<PlainArithmetic>::forward(const ForwardArgs&, Workspace) const;

}  // namespace vidsparse::reference
