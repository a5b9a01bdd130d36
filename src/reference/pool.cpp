#include <algorithm>

#include "reference/lanes.hpp"
#include "reference/op.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::reference {
namespace {

template <class T>
struct PoolLane {
  T* sum;  // [D]
  T* row;  // [D]

  PoolLane(core::Arena& arena, const core::Setting& setting)
      : sum(arena.take<T>(setting.problem.head_dim)),
        row(arena.take<T>(setting.problem.head_dim)) {}
};

/// Means of one head: `tokens` [B, S, heads, D] to `means` [B, heads, N, D].
template <class T>
void pool_head(const PoolLane<T>& lane, const Side& side, const TensorView& tokens,
               std::int64_t batch, std::int64_t head, const TensorRef& means) {
  const std::int64_t depth = tokens.shape[3];
  for (std::int64_t tile = 0; tile < side.tiles(); ++tile) {
    std::fill_n(lane.sum, depth, T{0});
    side.for_each_token(batch, tile, [&](std::int64_t token) {
      load_row(tokens, batch, token, head, lane.row);
      for (std::int64_t d = 0; d < depth; ++d) lane.sum[d] += lane.row[d];
    });
    // An empty tile's mean is 0.
    const T count = static_cast<T>(std::max<std::int64_t>(1, side.valid(batch, tile)));
    for (std::int64_t d = 0; d < depth; ++d) lane.sum[d] /= count;
    store_row(means, batch, head, tile, lane.sum);
  }
}

}  // namespace

template <class Arithmetic>
std::size_t Op<Arithmetic>::workspace_bytes(const PoolArgs&) const {
  return lanes_bytes<PoolLane<Scalar>>(setting_);
}

template <class Arithmetic>
void Op<Arithmetic>::pool(const PoolArgs& args, Workspace workspace) const {
  const Side query(setting_.query, args.lengths.query);
  const Side key(setting_.key, args.lengths.key);
  const std::int64_t group = setting_.problem.heads_q / setting_.problem.key_heads();
  for_each_key_head<PoolLane<Scalar>>(
      setting_, workspace,
      [&](const PoolLane<Scalar>& lane, std::int64_t batch, std::int64_t key_head) {
        if (args.qc) {
          for (std::int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
            pool_head(lane, query, args.q, batch, head, args.qc);
          }
        }
        if (args.kc) pool_head(lane, key, args.k, batch, key_head, args.kc);
        if (args.vc) pool_head(lane, key, args.v, batch, key_head, args.vc);
      });
}

template std::size_t Op<ExactArithmetic<double>>::workspace_bytes(const PoolArgs&) const;
template void Op<ExactArithmetic<double>>::pool(const PoolArgs&, Workspace) const;
template std::size_t Op<ExactArithmetic<float>>::workspace_bytes(const PoolArgs&) const;
template void Op<ExactArithmetic<float>>::pool(const PoolArgs&, Workspace) const;
template std::size_t Op<PlainArithmetic>::workspace_bytes(const PoolArgs&) const;
template void Op<PlainArithmetic>::pool(const PoolArgs&, Workspace) const;

}  // namespace vidsparse::reference
