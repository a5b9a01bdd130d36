#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/workspace.hpp"
#include "cpu/backward.hpp"
#include "cpu/pair_gradient.hpp"
#include "cpu/workers.hpp"

// Gradients of the coarse branch: dense attention of pooled queries over the non-empty tiles'
// pooled keys, in fp32, with the same five products as the fine branch. A unit of work is a key
// head with all its query heads, so nothing is shared between units.

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Scratch {        // per worker; slots = query tiles rounded up to 16
  float* q_t;           ///< [slots / 64][D][64]
  float* dout_t;        ///< likewise
  float* q;             ///< [slots / 64] fragments, each a B operand [64][D]
  float* dout;          ///< likewise
  float* lse;           ///< [slots]
  float* delta;         ///< [slots]
  float* dq_t;          ///< [slots / 64][D][64]
  float* k;             ///< [64][D]
  float* v;             ///< [64][D]
  float* k_t;           ///< [D][64]
  float* dk;            ///< [64][D]
  float* dv;            ///< [64][D]
  std::byte* pairs;     ///< of PairGradient
  std::int32_t* tiles;  ///< non-empty key tiles
};

struct Space {
  std::int32_t* query_counts;
  std::int32_t* key_counts;
  std::byte* scratch;
  std::size_t scratch_bytes;
};

Scratch lay_out_scratch(core::Arena& arena, const Context& context) {
  const std::int64_t d = context.head_dim();
  const std::int64_t slots = round_up(context.query.tiles(), 16);
  Scratch scratch;
  scratch.q_t = arena.take<float>(slots * d);
  scratch.dout_t = arena.take<float>(slots * d);
  scratch.q = arena.take<float>(slots * d);
  scratch.dout = arena.take<float>(slots * d);
  scratch.lse = arena.take<float>(slots);
  scratch.delta = arena.take<float>(slots);
  scratch.dq_t = arena.take<float>(slots * d);
  scratch.k = arena.take<float>(kFragment * d);
  scratch.v = arena.take<float>(kFragment * d);
  scratch.k_t = arena.take<float>(kFragment * d);
  scratch.dk = arena.take<float>(kFragment * d);
  scratch.dv = arena.take<float>(kFragment * d);
  scratch.pairs = arena.take<std::byte>(PairGradient::scratch_bytes(false, kFragment));
  scratch.tiles = arena.take<std::int32_t>(context.key.tiles());
  return scratch;
}

Space lay_out(core::Arena& arena, const Context& context, const BackwardArgs& args) {
  Space space;
  space.query_counts =
      arena.take<std::int32_t>(context.query.count_words(context.batch(), args.lengths.query));
  space.key_counts =
      arena.take<std::int32_t>(context.key.count_words(context.batch(), args.lengths.key));
  core::Arena one(nullptr);
  lay_out_scratch(one, context);
  space.scratch_bytes = one.used();
  space.scratch = arena.take<std::byte>(static_cast<std::int64_t>(space.scratch_bytes) *
                                        context.setting->parallel.concurrency());
  return space;
}

template <class Tensor>
auto* row_of(const Tensor& tensor, std::int64_t b, std::int64_t head, std::int64_t tile) {
  using Float = std::conditional_t<std::is_same_v<Tensor, TensorRef>, float, const float>;
  return static_cast<Float*>(tensor.data) + tensor.offset(b, head, tile);
}

class CoarseBackward {
 public:
  CoarseBackward(const Context& context, const BackwardArgs& args, const PoolArgs& pooled,
                 const TensorRef& dcoarse, const CoarseGradients& gradients, Workspace workspace)
      : context_(context),
        kernels_(*context.kernels),
        args_(args),
        pooled_(pooled),
        dcoarse_(dcoarse),
        gradients_(gradients),
        d_(context.head_dim()),
        queries_(context.query.tiles()),
        scale_(static_cast<float>(context.scale(args.scale))),
        pair_(kernels_, false, d_, d_, static_cast<float>(context.scale(args.scale))) {
    core::Arena arena(workspace.data);
    space_ = lay_out(arena, context, args);
    query_counts_ = context.query.counts(context.batch(), args.lengths.query, space_.query_counts);
    key_counts_ = context.key.counts(context.batch(), args.lengths.key, space_.key_counts);
  }

  void run() {
    const std::int64_t units = context_.batch() * context_.key_heads();
    for_each_unit(context_.setting->parallel, kernels_, units, [&](std::int64_t unit, int worker) {
      core::Arena arena(space_.scratch + static_cast<std::size_t>(worker) * space_.scratch_bytes);
      key_head(unit / context_.key_heads(), unit % context_.key_heads(),
               lay_out_scratch(arena, context_));
    });
  }

 private:
  void key_head(std::int64_t b, std::int64_t g, const Scratch& scratch) const {
    const std::int32_t* counts = key_counts_.row(b);
    int keys = 0;
    for (std::int64_t tile = 0; tile < context_.key.tiles(); ++tile) {
      if (counts[tile] > 0) scratch.tiles[keys++] = static_cast<std::int32_t>(tile);
      std::fill_n(row_of(gradients_.dkc, b, g, tile), d_, 0.0f);
      std::fill_n(row_of(gradients_.dvc, b, g, tile), d_, 0.0f);
    }
    for (std::int64_t member = 0; member < context_.group(); ++member) {
      const std::int64_t head = g * context_.group() + member;
      for (std::int64_t first = 0; first < queries_; first += kFragment) {
        pack_queries(b, head, first, scratch);
      }
      for (int first = 0; first < keys; first += kFragment) {
        key_block(b, g, scratch.tiles + first, std::min(kFragment, keys - first), scratch);
      }
      for (std::int64_t first = 0; first < queries_; first += kFragment) {
        finish_queries(b, head, first, scratch);
      }
    }
  }

  int width_of(std::int64_t first) const {
    return static_cast<int>(round_up(std::min<std::int64_t>(kFragment, queries_ - first), 16));
  }

  void pack_queries(std::int64_t b, std::int64_t head, std::int64_t first,
                    const Scratch& scratch) const {
    const int count = static_cast<int>(std::min<std::int64_t>(kFragment, queries_ - first));
    const int width = width_of(first);
    const void* q[kFragment];
    const void* dout[kFragment];
    for (int i = 0; i < width; ++i) {
      scratch.lse[first + i] = kInfinity;
      scratch.delta[first + i] = 0.0f;
      if (i >= count) continue;
      const std::int64_t tile = first + i;
      q[i] = kZeroRow;
      dout[i] = kZeroRow;
      const float max =
          static_cast<const float*>(args_.coarse_max.data)[args_.coarse_max.offset(b, head, tile)];
      const float sum =
          static_cast<const float*>(args_.coarse_sum.data)[args_.coarse_sum.offset(b, head, tile)];
      // A tile without tokens or a row without weight gives no gradient, not even 0 * inf.
      if (query_counts_.row(b)[tile] == 0 || sum == 0.0f) continue;
      const float* gradient = row_of(dcoarse_, b, head, tile);
      q[i] = row_of(pooled_.qc, b, head, tile);
      dout[i] = gradient;
      scratch.lse[tile] = static_cast<float>(max + std::log(double{sum}));
      scratch.delta[tile] = kernels_.dot(gradient, row_of(args_.oc, b, head, tile), d_);
    }
    const auto transposed = [&](const void* const* rows, float* out) {
      kernels_.transpose_words(rows, count, d_, reinterpret_cast<std::uint32_t*>(out + first * d_),
                               width, width, d_);
    };
    transposed(q, scratch.q_t);
    transposed(dout, scratch.dout_t);
    pack_rows_f32(q, count, d_, scratch.q + first * d_, width);
    pack_rows_f32(dout, count, d_, scratch.dout + first * d_, width);
    std::fill_n(scratch.dq_t + first * d_, width * d_, 0.0f);
  }

  void key_block(std::int64_t b, std::int64_t g, const std::int32_t* tiles, int count,
                 const Scratch& scratch) const {
    const int rows = static_cast<int>(round_up(count, 16));
    const std::size_t bytes = static_cast<std::size_t>(d_) * sizeof(float);
    const void* pointers[kFragment];
    for (int row = 0; row < rows; ++row) {
      float* k = scratch.k + row * d_;
      float* v = scratch.v + row * d_;
      pointers[row] = k;
      if (row < count) {
        std::memcpy(k, row_of(pooled_.kc, b, g, tiles[row]), bytes);
        std::memcpy(v, row_of(pooled_.vc, b, g, tiles[row]), bytes);
      } else {
        std::memset(k, 0, bytes);
        std::memset(v, 0, bytes);
      }
    }
    kernels_.transpose_words(pointers, rows, d_, reinterpret_cast<std::uint32_t*>(scratch.k_t),
                             rows, rows, d_);
    std::fill_n(scratch.dk, rows * d_, 0.0f);
    std::fill_n(scratch.dv, rows * d_, 0.0f);
    std::uint8_t begun = 0;  // all gradients start as zeros here
    const KeyOperands keys{scratch.k,  scratch.v, scratch.k_t, scratch.dk,
                           scratch.dv, &begun,    rows,        count};
    for (std::int64_t first = 0; first < queries_; first += kFragment) {
      const QueryOperands q{scratch.q_t + first * d_,
                            scratch.dout_t + first * d_,
                            scratch.q + first * d_,
                            scratch.dout + first * d_,
                            scratch.lse + first,
                            scratch.delta + first,
                            scratch.dq_t + first * d_,
                            &begun,
                            width_of(first),
                            static_cast<int>(std::min<std::int64_t>(kFragment, queries_ - first))};
      pair_.add(&q, 1, keys, {}, scratch.pairs);
    }
    for (int row = 0; row < count; ++row) {
      float* dkc = row_of(gradients_.dkc, b, g, tiles[row]);
      float* dvc = row_of(gradients_.dvc, b, g, tiles[row]);
      for (int i = 0; i < d_; ++i) {
        dkc[i] += scale_ * scratch.dk[row * d_ + i];
        dvc[i] += scratch.dv[row * d_ + i];
      }
    }
  }

  void finish_queries(std::int64_t b, std::int64_t head, std::int64_t first,
                      const Scratch& scratch) const {
    const int width = width_of(first);
    const float* dq_t = scratch.dq_t + first * d_;
    for (int i = 0; i < width && first + i < queries_; ++i) {
      float* dqc = row_of(gradients_.dqc, b, head, first + i);
      for (int e = 0; e < d_; ++e) dqc[e] = scale_ * dq_t[e * width + i];
    }
  }

  const Context& context_;
  const Kernels& kernels_;
  const BackwardArgs& args_;
  const PoolArgs& pooled_;
  TensorRef dcoarse_;
  CoarseGradients gradients_;
  int d_;
  std::int64_t queries_;
  float scale_;
  PairGradient pair_;
  Space space_;
  Counts query_counts_;
  Counts key_counts_;
};

}  // namespace

std::size_t coarse_backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  lay_out(arena, context, args);
  return arena.used();
}

void coarse_backward(const Context& context, const BackwardArgs& args, const PoolArgs& pooled,
                     const TensorRef& dcoarse, const CoarseGradients& gradients,
                     Workspace workspace) {
  CoarseBackward(context, args, pooled, dcoarse, gradients, workspace).run();
}

}  // namespace vidsparse::cpu
