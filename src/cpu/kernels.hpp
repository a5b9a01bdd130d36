#pragma once

#include <cstddef>
#include <cstdint>

#include "vidsparse/dtype.hpp"

namespace vidsparse::cpu {

// Every product of the backend is a product of 32-bit words: one fp32, or two bf16 that are
// neighbours along the summed dimension (the earlier one in the low half). A bf16 operand thus
// looks like an fp32 one with half the depth, and one layout serves vdpbf16ps and the AMX tiles.
//
// A operand: row-major, `lda` words from row to row, words along the depth.
// B operand: packed in panels of 64 columns (the last may be narrower, a multiple of 16):
//   [columns / 64][depth][width of the panel], depth counted in words.
// C: row-major fp32.
//
// Rows of A and C are readable and C writable up to the next multiple of 16 rows; what is computed
// there is of no interest. Operands need no alignment beyond their element's, but 64 bytes is fast.

inline constexpr int kPanel = 64;        ///< columns of a panel of B
inline constexpr int kFragment = 64;     ///< tokens a kernel works on at once
inline constexpr int kMaxHeadDim = 256;  ///< head_dim is a multiple of 16

/// One summand of a product: A[m][depth] * B[depth][n].
struct Term {
  const void* a;
  const void* b;
  std::ptrdiff_t lda;  ///< words
  int depth;           ///< words; a multiple of Kernels::depth_multiple for bf16
  /// Memory to be brought into the second-level cache meanwhile: what the caller needs next. The
  /// hardware's own prefetching is too late for a fragment that lies in the third level.
  const void* ahead = nullptr;
  std::ptrdiff_t ahead_bytes = 0;
};

/// C[m][n] (+)= sum of terms. n is a multiple of 16.
struct Product {
  const Term* terms;
  int count;
  float* c;
  std::ptrdiff_t ldc;
  int m;
  int n;
  bool accumulate;  ///< add to C; otherwise C is written whole and may hold anything
};

/// One step of online softmax over scores S[m][n], n a multiple of 16. Columns that are no keys
/// hold -inf. Running maxima and sums are in base 2: max = max(S * scale_log2).
struct SoftmaxBlock {
  float* s;  ///< fp32: overwritten by P = exp2(S * scale_log2 - max)
  std::ptrdiff_t lds;
  std::uint16_t* p;  ///< bf16 only: P
  std::ptrdiff_t ldp;
  int m;
  int n;
  float scale_log2;  ///< scale * log2(e), positive
  float* max;        ///< [m]
  float* sum;        ///< [m]
  float* out;        ///< [m][d] accumulators, rescaled where a row's maximum moved; may be null
  std::ptrdiff_t ldo;
  int d;
  bool first;  ///< max, sum and out hold nothing yet
};

/// P and dS of one pair of fragments, transposed: rows are keys, columns queries.
///   P^T = exp(S^T * scale - lse[column]),  dS^T = P^T * (dP^T - delta[column]);
/// the factor scale of dS is left to whoever rounds dQ and dK. Rows from `valid` on are zero.
struct GradientBlock {
  float* s;   ///< [keys][queries] S^T; fp32: overwritten by P^T
  float* dp;  ///< [keys][queries] dP^T; fp32: overwritten by dS^T
  std::ptrdiff_t ld;
  int keys;     ///< even
  int valid;    ///< real keys
  int queries;  ///< a multiple of 16
  float scale;
  const float* lse;    ///< [queries], natural; +inf where there is no query
  const float* delta;  ///< [queries]
  // bf16 only.
  std::uint16_t* p;   ///< A operand P^T [keys][queries], `ld_words` words a row
  std::uint16_t* ds;  ///< A operand dS^T, likewise
  std::ptrdiff_t ld_words;
  std::uint32_t* ds_pairs;  ///< B operand dS^T [keys / 2][queries]
};

/// out = round(acc * factor + gate * coarse); rounded once. d elements.
struct FinishRow {
  const float* acc;
  float factor;
  const float* coarse;  ///< null: no second summand
  const void* gate;     ///< of `dtype`; null: `gate_scalar`
  float gate_scalar;
  DType dtype;
  void* out;
  int d;
};

/// What the backward needs of one token before its products. d elements.
struct PrepareRow {
  DType dtype;
  const void* dout;
  const void* out;
  const void* gate;  ///< null: `gate_scalar`
  float gate_scalar;
  const float* coarse;  ///< oc of the token's tile; null without a gate
  void* dgate;          ///< = round(dout * coarse); may be null
  float* dcoarse;       ///< += dout * gate; may be null
  int d;
};

/// The micro-kernels of one instruction set. 16-bit tensors are packed in words of two elements
/// whatever the ISA; `expand_pairs` makes the fp32 operand of them where products are fp32.
struct Kernels {
  const char* name;

  /// Called by a thread before and after a run of other calls (AMX: sets the tiles up and gives
  /// them back); null where there is nothing to do.
  void (*enter)();
  void (*leave)();

  void (*product_f32)(const Product& product);
  /// Null where there is no bf16 dot product (or none that pays): 16-bit operands are expanded.
  void (*product_bf16)(const Product& product);
  /// Depth granularity of product_bf16, in words: operands are zero-padded to it.
  int depth_multiple;

  void (*softmax_f32)(const SoftmaxBlock& block);
  void (*softmax_bf16)(const SoftmaxBlock& block);  ///< null with product_bf16
  void (*gradient_f32)(const GradientBlock& block);
  void (*gradient_bf16)(const GradientBlock& block);  ///< null with product_bf16

  /// out[w][i] = word w of rows[i]: w < words, i < count; zero for w in [words, out_words) and i in
  /// [count, columns). `ldo` words from row to row of out.
  void (*transpose_words)(const void* const* rows, int count, int words, std::uint32_t* out,
                          std::ptrdiff_t ldo, int columns, int out_words);
  /// B operand of 16-bit rows: word (r, c) = elements c of rows 2r and 2r+1; rows past `count` are
  /// zero. Panels of 64 of `d` columns, `pairs` words deep.
  void (*interleave_rows)(const void* const* rows, int count, int d, std::uint32_t* out, int pairs);
  /// Words [pairs][n] in panels to fp32 [2 * pairs][n] in panels. dtype f16 or bf16.
  void (*expand_pairs)(DType dtype, const std::uint32_t* words, int pairs, int n, float* out);

  /// Asks for memory to be brought into the second-level cache.
  void (*prefetch)(const void* data, std::ptrdiff_t bytes);

  /// To and from fp32; dtype f32, f16 or bf16; narrowing rounds to nearest even.
  void (*widen)(DType dtype, const void* source, float* out, std::int64_t count);
  void (*narrow)(DType dtype, const float* source, void* out, std::int64_t count);

  /// out[d] = sum of rows, in order.
  void (*sum_rows)(DType dtype, const void* const* rows, int count, int d, float* out);
  void (*finish_row)(const FinishRow& row);
  /// Returns rowsum(dout * out) - rowsum(dout * gate * coarse).
  float (*prepare_row)(const PrepareRow& row);
  /// sum of a[i] * b[i].
  float (*dot)(const float* a, const float* b, std::int64_t count);
};

}  // namespace vidsparse::cpu
