#include <limits>

#include "reference/attended.hpp"
#include "reference/coarse_gradient.hpp"
#include "reference/lanes.hpp"
#include "reference/op.hpp"

namespace vidsparse::reference {
namespace {

template <class T>
struct BackwardLane {
  Attended<T> attended;
  CoarseGradient<T> coarse;
  T* weights;  // [n]: P
  T* dscores;  // [n]: dP, then dS
  T* dk;       // [Sk][D]: fine branch, over the query heads of the group
  T* dv;       // [Sk][D]
  // One token or one tile each, [D].
  T *q, *out, *dout, *gate, *dq, *qc, *oc, *doc, *dqc;

  BackwardLane(core::Arena& arena, const core::Setting& setting)
      : attended(arena, setting), coarse(arena, setting) {
    const std::int64_t depth = setting.problem.head_dim;
    const std::int64_t tokens = setting.key.tokens();
    weights = arena.take<T>(tokens);
    dscores = arena.take<T>(tokens);
    dk = arena.take<T>(tokens * depth);
    dv = arena.take<T>(tokens * depth);
    for (T** row : {&q, &out, &dout, &gate, &dq, &qc, &oc, &doc, &dqc}) {
      *row = arena.take<T>(depth);
    }
  }
};

/// Pooled tensors made anew, in the arithmetic's own type; absent without a gate.
struct Pooled {
  TensorRef qc, kc, vc;

  Pooled(core::Arena& arena, const core::Setting& setting, DType dtype, const Gate& gate) {
    if (gate.is_none()) return;
    const Problem& problem = setting.problem;
    const std::int64_t depth = problem.head_dim;
    qc = arena.tensor(dtype, 4, {problem.batch, problem.heads_q, setting.query.tiles(), depth});
    kc = arena.tensor(dtype, 4, {problem.batch, problem.key_heads(), setting.key.tiles(), depth});
    vc = arena.tensor(dtype, 4, {problem.batch, problem.key_heads(), setting.key.tiles(), depth});
  }
};

/// The backward of one call, head by head.
template <class Arithmetic>
class Backward {
 public:
  using T = typename Arithmetic::Scalar;
  using Lane = BackwardLane<T>;

  Backward(const core::Setting& setting, const Arithmetic& round, const BackwardArgs& args,
           const Pooled& pooled)
      : round_(round),
        args_(args),
        pooled_(pooled),
        query_(setting.query, args.lengths.query),
        key_(setting.key, args.lengths.key),
        scale_(static_cast<T>(scale_of(setting.problem, args.scale))),
        depth_(setting.problem.head_dim),
        group_(setting.problem.heads_q / setting.problem.key_heads()),
        gated_(!args.gate.is_none()) {}

  /// Everything that depends on one key head.
  void key_head(const Lane& lane, std::int64_t batch, std::int64_t key_head) const {
    std::fill_n(lane.dk, key_.layout().tokens() * depth_, T{0});
    std::fill_n(lane.dv, key_.layout().tokens() * depth_, T{0});
    const std::int64_t m =
        gated_ ? lane.coarse.start(key_, pooled_.kc, pooled_.vc, batch, key_head) : 0;
    for (std::int64_t head = key_head * group_; head < (key_head + 1) * group_; ++head) {
      clear_head(args_.dq, batch, head);
      if (args_.dgate) clear_head(args_.dgate, batch, head);
      for (std::int64_t tile = 0; tile < query_.tiles(); ++tile) {
        if (query_.valid(batch, tile) == 0) continue;
        if (gated_) coarse_tile(lane, m, batch, head, tile);
        fine_tile(lane, batch, head, key_head, tile);
      }
    }
    store_key_gradients(lane, m, batch, key_head);
  }

 private:
  /// d_oc and dgate of a query tile, and the coarse branch's dqc.
  void coarse_tile(const Lane& lane, std::int64_t m, std::int64_t batch, std::int64_t head,
                   std::int64_t tile) const {
    load_row(args_.oc, batch, head, tile, lane.oc);
    std::fill_n(lane.doc, depth_, T{0});
    query_.for_each_token(batch, tile, [&](std::int64_t token) {
      load_row(args_.dout, batch, token, head, lane.dout);
      load_gate(args_.gate, batch, token, head, depth_, lane.gate);
      for (std::int64_t d = 0; d < depth_; ++d) lane.doc[d] += lane.dout[d] * lane.gate[d];
      if (args_.dgate) {
        for (std::int64_t d = 0; d < depth_; ++d) lane.gate[d] = lane.dout[d] * lane.oc[d];
        store_row(args_.dgate, batch, token, head, lane.gate);
      }
    });
    const SoftmaxSums<T> sums{
        load<T>(args_.coarse_max, args_.coarse_max.offset(batch, head) + tile),
        load<T>(args_.coarse_sum, args_.coarse_sum.offset(batch, head) + tile)};
    load_row(pooled_.qc, batch, head, tile, lane.qc);
    lane.coarse.add_row(round_, m, depth_, scale_, lane.qc, lane.oc, lane.doc, sums, lane.dqc);
  }

  /// The FlashAttention-2 recipe for the tokens of a query tile; dq is finished here.
  void fine_tile(const Lane& lane, std::int64_t batch, std::int64_t head, std::int64_t key_head,
                 std::int64_t tile) const {
    const std::int64_t n =
        lane.attended.gather(key_, args_.k, args_.v, batch, key_head,
                             args_.mask.row(batch, head, tile), args_.mask.shape.row_words());
    const auto count = static_cast<T>(query_.valid(batch, tile));
    query_.for_each_token(batch, tile, [&](std::int64_t token) {
      std::fill_n(lane.dq, depth_, T{0});
      const T lse = load<T>(args_.lse, args_.lse.offset(batch, head) + token);
      if (lse != -std::numeric_limits<T>::infinity()) fine_token(lane, n, batch, head, token, lse);
      for (std::int64_t d = 0; gated_ && d < depth_; ++d) {
        lane.dq[d] = round_(lane.dq[d] + lane.dqc[d] / count);
      }
      store_row(args_.dq, batch, token, head, lane.dq);
    });
  }

  void fine_token(const Lane& lane, std::int64_t n, std::int64_t batch, std::int64_t head,
                  std::int64_t token, T lse) const {
    const Attended<T>& attended = lane.attended;
    load_row(args_.q, batch, token, head, lane.q);
    load_row(args_.out, batch, token, head, lane.out);
    load_row(args_.dout, batch, token, head, lane.dout);
    if (gated_) {
      load_gate(args_.gate, batch, token, head, depth_, lane.gate);
      for (std::int64_t d = 0; d < depth_; ++d) lane.out[d] -= lane.gate[d] * lane.oc[d];
    }
    T delta = dot(lane.dout, lane.out, depth_);
    if (args_.dlse) delta -= load<T>(args_.dlse, args_.dlse.offset(batch, head) + token);

    times_columns(round_, lane.q, attended.key_columns, depth_, n, scale_, lane.weights);
    for (std::int64_t j = 0; j < n; ++j) lane.weights[j] = round_(std::exp(lane.weights[j] - lse));
    times_columns(round_, lane.dout, attended.value_columns, depth_, n, T{1}, lane.dscores);
    for (std::int64_t j = 0; j < n; ++j) {
      lane.dscores[j] = round_(lane.weights[j] * (lane.dscores[j] - delta));
    }
    weighted_sum(round_, lane.dscores, attended.keys, n, depth_, scale_, lane.dq);
    for (std::int64_t j = 0; j < n; ++j) {
      add_scaled(scale_ * lane.dscores[j], lane.q, depth_, lane.dk + attended.tokens[j] * depth_);
      add_scaled(lane.weights[j], lane.dout, depth_, lane.dv + attended.tokens[j] * depth_);
    }
  }

  /// Both branches added; every valid token of a tile receives d / n_j of the pooled one.
  void store_key_gradients(const Lane& lane, std::int64_t m, std::int64_t batch,
                           std::int64_t key_head) const {
    clear_head(args_.dk, batch, key_head);
    clear_head(args_.dv, batch, key_head);
    std::int64_t position = 0;  // of the tile among the non-empty ones
    for (std::int64_t tile = 0; tile < key_.tiles(); ++tile) {
      if (key_.valid(batch, tile) == 0) continue;
      const auto count = static_cast<T>(key_.valid(batch, tile));
      key_.for_each_token(batch, tile, [&](std::int64_t token) {
        T* dk = lane.dk + token * depth_;
        T* dv = lane.dv + token * depth_;
        for (std::int64_t d = 0; d < depth_; ++d) {
          dk[d] = round_(dk[d]);
          dv[d] = round_(dv[d]);
          if (position < m) {
            dk[d] = round_(dk[d] + round_(lane.coarse.dkeys[position * depth_ + d]) / count);
            dv[d] = round_(dv[d] + round_(lane.coarse.dvalues[position * depth_ + d]) / count);
          }
        }
        store_row(args_.dk, batch, token, key_head, dk);
        store_row(args_.dv, batch, token, key_head, dv);
      });
      ++position;
    }
  }

  const Arithmetic& round_;
  const BackwardArgs& args_;
  const Pooled& pooled_;
  Side query_;
  Side key_;
  T scale_;
  std::int64_t depth_;
  std::int64_t group_;
  bool gated_;
};

}  // namespace

template <class Arithmetic>
std::size_t Op<Arithmetic>::workspace_bytes(const BackwardArgs& args) const {
  core::Arena arena(nullptr);
  Pooled(arena, setting_, dtype_of<Scalar>(), args.gate);
  return arena.used() +
         std::max(workspace_bytes(PoolArgs{}), lanes_bytes<BackwardLane<Scalar>>(setting_));
}

template <class Arithmetic>
void Op<Arithmetic>::backward(const BackwardArgs& args, Workspace workspace) const {
  core::Arena arena(workspace.data);
  const Pooled pooled(arena, setting_, dtype_of<Scalar>(), args.gate);
  const Workspace rest = arena.rest(workspace.bytes - arena.used());
  if (!args.gate.is_none()) {
    PoolArgs means;
    means.q = args.q;
    means.k = args.k;
    means.v = args.v;
    means.lengths = args.lengths;
    means.qc = pooled.qc;
    means.kc = pooled.kc;
    means.vc = pooled.vc;
    pool(means, rest);
  }
  const Backward<Arithmetic> backward(setting_, round_, args, pooled);
  for_each_key_head<BackwardLane<Scalar>>(
      setting_, rest,
      [&](const BackwardLane<Scalar>& lane, std::int64_t batch, std::int64_t key_head) {
        backward.key_head(lane, batch, key_head);
      });
}

template std::size_t Op<ExactArithmetic<double>>::workspace_bytes(const BackwardArgs&) const;
template void Op<ExactArithmetic<double>>::backward(const BackwardArgs&, Workspace) const;
template std::size_t Op<ExactArithmetic<float>>::workspace_bytes(const BackwardArgs&) const;
template void Op<ExactArithmetic<float>>::backward(const BackwardArgs&, Workspace) const;
template std::size_t Op<PlainArithmetic>::workspace_bytes(const BackwardArgs&) const;
template void Op<PlainArithmetic>::backward(const BackwardArgs&, Workspace) const;

}  // namespace vidsparse::reference
