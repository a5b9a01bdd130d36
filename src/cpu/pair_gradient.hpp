#pragma once

#include <algorithm>

#include "cpu/kernels.hpp"

namespace vidsparse::cpu {

/// One fragment of queries, ready to be multiplied. B operands; words are pairs of bf16 where
/// products are.
struct QueryOperands {
  const void* q_t;     ///< Q^T [depth][width]
  const void* dout_t;  ///< dO^T [depth][width]
  const void* q;       ///< Q [width in words][D]
  const void* dout;    ///< dO [width in words][D]
  const float* lse;    ///< [width], +inf where there is no query
  const float* delta;  ///< [width]
  float* dq_t;         ///< [D][width], added to
  int width;
  int valid;  ///< real queries
};

/// Memory that will be needed after this pair, fetched during its five products.
struct Ahead {
  const void* data = nullptr;
  std::ptrdiff_t bytes = 0;
};

/// Some keys of one tile. A operands.
struct KeyOperands {
  const void* k;    ///< [rows][depth]
  const void* v;    ///< [rows][depth]
  const void* k_t;  ///< K^T [D][rows in words]
  float* dk;        ///< [rows][D], added to
  float* dv;        ///< [rows][D], added to
  int rows;         ///< rounded up like `width`
  int valid;
};

inline constexpr int kKeyRows = 256;  ///< most rows of a KeyOperands

/// Memory of one pair.
struct PairScratch {
  float* s;                 ///< [kKeyRows][64]
  float* dp;                ///< [kKeyRows][64]
  std::uint16_t* p;         ///< [kKeyRows][64], bf16 products only, as the next two
  std::uint16_t* ds;        ///< [kKeyRows][64]
  std::uint32_t* ds_pairs;  ///< [kKeyRows / 2][64]
};

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

  void add(const QueryOperands& q, const KeyOperands& k, const Ahead (&ahead)[5],
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
    const int words = bf16_ ? q.width / 2 : q.width;
    const GradientBlock block{scratch.s,  scratch.dp, q.width,         k.rows,  k.valid,
                              q.width,    scale_,     q.lse,           q.delta, scratch.p,
                              scratch.ds, words,      scratch.ds_pairs};
    (bf16_ ? kernels_.gradient_bf16 : kernels_.gradient_f32)(block);
    const void* p = bf16_ ? static_cast<const void*>(scratch.p) : scratch.s;
    const void* ds = bf16_ ? static_cast<const void*>(scratch.ds) : scratch.dp;
    const void* ds_b = bf16_ ? static_cast<const void*>(scratch.ds_pairs) : scratch.dp;

    const Term dv{p, q.dout, words, words, ahead[2].data, ahead[2].bytes};
    product_({&dv, 1, k.dv, d_, k.rows, d_, true});
    const Term dk{ds, q.q, words, words, ahead[3].data, ahead[3].bytes};
    product_({&dk, 1, k.dk, d_, k.rows, d_, true});
    const int key_words = bf16_ ? k.rows / 2 : k.rows;
    const Term dq{k.k_t, ds_b, key_words, key_words, ahead[4].data, ahead[4].bytes};
    product_({&dq, 1, q.dq_t, q.width, d_, q.width, true});
  }

 private:
  const Kernels& kernels_;
  void (*product_)(const Product&);
  bool bf16_;
  int d_;
  int depth_;
  float scale_;
};

}  // namespace vidsparse::cpu
