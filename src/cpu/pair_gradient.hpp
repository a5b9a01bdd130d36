#pragma once

#include <algorithm>
#include <limits>

#include "cpu/kernels.hpp"

namespace vidsparse::cpu {

/// One fragment of queries, ready to be multiplied. B operands; words are pairs of bf16 where
/// products are.
struct QueryOperands {
  const void* q_t;      ///< Q^T [depth][width]
  const void* dout_t;   ///< dO^T [depth][width]
  const void* q;        ///< Q [width in words][D]
  const void* dout;     ///< dO [width in words][D]
  const float* lse;     ///< [width], +inf where there is no query
  const float* delta;   ///< [width]
  float* dq_t;          ///< [D][width], added to
  std::uint8_t* fresh;  ///< whether dq_t holds nothing yet
  int width;
  int valid;  ///< real queries
};

/// Memory that will be needed soon, fetched during a product.
struct Ahead {
  const void* data = nullptr;
  std::ptrdiff_t bytes = 0;
};

/// Some keys of one tile. A operands.
struct KeyOperands {
  const void* k;        ///< [rows][depth]
  const void* v;        ///< [rows][depth]
  const void* k_t;      ///< K^T [D][rows in words]
  float* dk;            ///< [rows][D], added to
  float* dv;            ///< [rows][D], added to
  std::uint8_t* fresh;  ///< whether dk and dv hold nothing yet
  int rows;             ///< rounded up like `width`
  int valid;
};

inline constexpr int kKeyRows = 256;  ///< most rows of a KeyOperands
/// Fragments of queries that are multiplied at once: dK and dV stay in registers over all of them.
inline constexpr int kBatch = 2;

/// The five products of a pair of fragments, all with keys as rows so that none of them needs a
/// transposition:
///   S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q, dQ^T += K^T dS^T.
/// The factor `scale` of dQ and dK is left to whoever rounds them.
class PairGradient {
 public:
  PairGradient(const Kernels& kernels, bool bf16, int head_dim, int depth, float scale)
      : kernels_(kernels),
        product_(bf16 ? kernels.product_bf16 : kernels.product_f32),
        bf16_(bf16),
        d_(head_dim),
        depth_(depth),
        scale_(scale) {}

  /// Memory a worker lends `add`.
  static std::int64_t scratch_bytes(bool bf16, int rows = kKeyRows) {
    core::Arena arena(nullptr);
    for (int i = 0; i < kBatch; ++i) lay_out_pair(arena, rows, bf16);
    return static_cast<std::int64_t>(arena.used());
  }

  /// `count` fragments of queries, at most kBatch, with one block of keys. The products take their
  /// summands, and fetch `ahead`, in the order S and dP of each fragment, then dV, dK, dQ of all.
  void add(const QueryOperands* q, int count, const KeyOperands& k,
           const Ahead (&ahead)[5 * kBatch], std::byte* scratch_memory) const {
    const Ahead* fetch = ahead;
    core::Arena arena(scratch_memory);
    PairScratch scratch[kBatch];
    for (PairScratch& pair : scratch) pair = lay_out_pair(arena, k.rows, bf16_);
    for (int i = 0; i < count; ++i, fetch += 2) probabilities(q[i], k, fetch, scratch[i]);
    Term dv[kBatch];
    Term dk[kBatch];
    for (int i = 0; i < count; ++i, ++fetch) {
      const int words = bf16_ ? q[i].width / 2 : q[i].width;
      const PairScratch& pair = scratch[i];
      const void* p = bf16_ ? static_cast<const void*>(pair.p) : pair.s;
      const void* ds = bf16_ ? static_cast<const void*>(pair.ds) : pair.dp;
      dv[i] = {p, q[i].dout, words, words, fetch->data, fetch->bytes};
      dk[i] = {ds, q[i].q, words, words, fetch[count].data, fetch[count].bytes};
    }
    fetch += count;
    const bool add = *k.fresh == 0;
    product_({dv, count, k.dv, d_, k.rows, d_, add});
    product_({dk, count, k.dk, d_, k.rows, d_, add});
    *k.fresh = 0;
    const int words = bf16_ ? k.rows / 2 : k.rows;
    for (int i = 0; i < count; ++i, ++fetch) {
      const void* ds = bf16_ ? static_cast<const void*>(scratch[i].ds_pairs) : scratch[i].dp;
      const Term dq{k.k_t, ds, words, words, fetch->data, fetch->bytes};
      product_({&dq, 1, q[i].dq_t, q[i].width, d_, q[i].width, *q[i].fresh == 0});
      *q[i].fresh = 0;
      clear_dead(q[i], q[i].dq_t, d_);
    }
  }

 private:
  struct PairScratch {        // of one pair; one after the other, as full as the keys are
    float* s;                 ///< [rows][64]
    float* dp;                ///< [rows][64]
    std::uint16_t* p;         ///< [rows][64], bf16 products only, as the next two
    std::uint16_t* ds;        ///< [rows][64]
    std::uint32_t* ds_pairs;  ///< [rows / 2][64]
  };

  static PairScratch lay_out_pair(core::Arena& arena, int rows, bool bf16) {
    PairScratch pair;
    pair.s = arena.take<float>(rows * kFragment);
    pair.dp = arena.take<float>(rows * kFragment);
    const int halves = bf16 ? rows * kFragment : 0;
    pair.p = arena.take<std::uint16_t>(halves);
    pair.ds = arena.take<std::uint16_t>(halves);
    pair.ds_pairs = arena.take<std::uint32_t>(halves / 2);
    return pair;
  }

  /// Zeros in the columns of queries that give no gradient: infinite keys would make 0 * inf of it.
  static void clear_dead(const QueryOperands& q, float* matrix, int rows) {
    for (int column = 0; column < q.valid; ++column) {
      if (q.lse[column] != std::numeric_limits<float>::infinity()) continue;
      for (int row = 0; row < rows; ++row) matrix[row * q.width + column] = 0.0f;
    }
  }

  /// P^T and dS^T of one pair.
  void probabilities(const QueryOperands& q, const KeyOperands& k, const Ahead* ahead,
                     const PairScratch& scratch) const {
    const Term scores{k.k, q.q_t, depth_, depth_, ahead[0].data, ahead[0].bytes};
    product_({&scores, 1, scratch.s, q.width, k.rows, q.width, false});
    const Term values{k.v, q.dout_t, depth_, depth_, ahead[1].data, ahead[1].bytes};
    product_({&values, 1, scratch.dp, q.width, k.rows, q.width, false});
    // Infinite keys or values times the zeros of a column that is no query are NaN.
    for (int row = 0; row < k.rows && q.valid < q.width; ++row) {
      std::fill(scratch.s + row * q.width + q.valid, scratch.s + (row + 1) * q.width, 0.0f);
      std::fill(scratch.dp + row * q.width + q.valid, scratch.dp + (row + 1) * q.width, 0.0f);
    }
    clear_dead(q, scratch.s, k.rows);
    clear_dead(q, scratch.dp, k.rows);
    const GradientBlock block{scratch.s,  scratch.dp,  q.width,         k.rows,  k.valid,
                              q.width,    scale_,      q.lse,           q.delta, scratch.p,
                              scratch.ds, q.width / 2, scratch.ds_pairs};
    (bf16_ ? kernels_.gradient_bf16 : kernels_.gradient_f32)(block);
  }

  const Kernels& kernels_;
  void (*product_)(const Product&);
  bool bf16_;
  int d_;
  int depth_;
  float scale_;
};

}  // namespace vidsparse::cpu
