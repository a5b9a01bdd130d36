#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/common/tensor.cuh"

namespace vidsparse::cuda::sm80 {

/// Where the two rows of a thread go: their tokens, -1 for none, and which of them are pads.
struct GradientRows {
  int token[2];
  bool valid[2];
  bool has_fine[2];  ///< false: the accumulators are no gradient

  __device__ static GradientRows of(const Side& side, const Fragment& rows, int first_slot) {
    GradientRows result;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int slot = first_slot + 8 * r;
      const int token = rows.token(slot);
      result.valid[r] = token >= 0;
      result.has_fine[r] = true;
      result.token[r] = token >= 0 ? token : side.pad_token(rows, slot);
    }
    return result;
  }
};

/// Writes the 16 rows of a gradient that a warp has: accumulators times `factor`, plus the tile's
/// row of the pooled branch's gradient (null: none), rounded once. Pads become 0.
template <class T, int D>
__device__ void store_gradient(const Tensor<T>& to, int batch, int head, const GradientRows& rows,
                               int quad, float factor, const float* coarse,
                               const float (&sums)[D / 2]) {
  constexpr int kBlocks = D / 16;  // of eight columns, two of them this thread's; half of all
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float2 added[kBlocks] = {};
    if (coarse != nullptr) {
      const auto* from = reinterpret_cast<const float2*>(coarse) + half * kBlocks * 4 + quad;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) added[block] = from[block * 4];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      T* row = rows.token[r] >= 0 ? to.row(batch, rows.token[r], head) + half * (D / 2) : nullptr;
#pragma unroll
      for (int b = 0; b < kBlocks / 4; ++b) {
        std::uint32_t x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int block = 4 * b + j;
          const int at = (half * kBlocks + block) * 4 + 2 * r;
          float2 value = added[block];
          if (rows.has_fine[r]) {
            value.x = fmaf(sums[at], factor, value.x);
            value.y = fmaf(sums[at + 1], factor, value.y);
          }
          x[j] = rows.valid[r] ? pack<T>(value.x, value.y) : 0;
        }
        transpose_quad(x, quad);
        if (row != nullptr) {
          *reinterpret_cast<uint4*>(row + (4 * b + quad) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
        }
      }
    }
  }
}

}  // namespace vidsparse::cuda::sm80
