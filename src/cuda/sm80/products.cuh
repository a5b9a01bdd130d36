#pragma once

#include <cstdint>

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/warp_mma.cuh"

// Products of a warp with a fragment in shared memory: 64 rows of D elements as
// fragment_copy.cuh writes them. A *lane address* is that of the lane's first matrix row, as
// first_row() and first_column() give it; columns_further() says where further columns lie from
// there, and 16 rows are an addition.

namespace vidsparse::cuda::sm80 {

/// Where a 16-byte chunk of a row lies in a fragment in shared memory: eight neighbouring rows have
/// the same chunk in eight different groups of banks.
template <int RowBytes>
__device__ constexpr int swizzled(int row, int chunk) {
  return row * RowBytes + ((chunk ^ (row & 7)) * 16);
}

/// A lane address 16 * k columns further. Of a row's bytes swizzling changes bits 4 to 6: below 128
/// bytes 16 columns are an exclusive or with 32 bytes, because nothing else uses those bits, and
/// 128 bytes are an addition, which loads do themselves.
__device__ constexpr std::uint32_t columns_further(std::uint32_t lane_address, int k) {
  return (lane_address ^ (k * 32 & 96)) + (k * 32 & ~127);
}

/// Offset of a lane address for 16 rows that are a product's rows, or its depth.
template <int RowBytes>
__device__ constexpr int first_row(int lane) {
  return swizzled<RowBytes>(lane % 16, lane / 16);
}

/// The same for 16 rows that become columns of a product.
template <int RowBytes>
__device__ constexpr int first_column(int lane) {
  return swizzled<RowBytes>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

/// Accumulators of 16 rows, N columns: value 4 i + j of a lane lies in columns 8 i to 8 i + 7.
template <class T, int N>
__device__ inline void multiply(float (&sums)[N], int at, const std::uint32_t* rows,
                                std::uint32_t column0, std::uint32_t column1) {
  ptx::mma_m16n8k16<T>(sums[at], sums[at + 1], sums[at + 2], sums[at + 3], rows, column0, column1);
}

/// scores = rows . fragment^T for RowTiles times 16 rows and 2 * Half rows of the fragment.
/// `load(k, m, words)` gives columns 16 k to 16 k + 15 of row tile m; the lane address for columns,
/// of the fragment's first one, is `fragment` + `offset`, a number the compiler knows.
template <class T, int D, int RowTiles, int Half, class Load>
__device__ inline void multiply_transposed(float (&scores)[RowTiles][Half], Load&& load,
                                           std::uint32_t fragment, int offset = 0) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (float& value : scores[m]) value = 0;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t rows[RowTiles][4];
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) load(k, m, rows[m]);
#pragma unroll
    for (int n = 0; n < Half / 8; ++n) {  // 16 of the fragment's rows
      std::uint32_t four[4];
      ptx::load_matrices(four, columns_further(fragment, k) + offset + n * 16 * (D * 2));
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) {
        multiply<T>(scores[m], 8 * n, rows[m], four[0], four[1]);
        multiply<T>(scores[m], 8 * n + 4, rows[m], four[2], four[3]);
      }
    }
  }
}

/// sums += weights . fragment for RowTiles times 16 rows, 16 * Steps of the fragment's rows and
/// 2 * Half of its D columns. `load(k, m, words)` gives columns 16 k to 16 k + 15 of the weights;
/// the lane address for rows, of the first row and column, is `fragment` + `offset`.
template <class T, int D, int Steps = 4, int RowTiles, int Half, class Load>
__device__ inline void multiply_added(float (&sums)[RowTiles][Half], Load&& load,
                                      std::uint32_t fragment, int offset = 0) {
#pragma unroll
  for (int k = 0; k < Steps; ++k) {  // 16 of the fragment's rows
    std::uint32_t rows[RowTiles][4];
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) load(k, m, rows[m]);
#pragma unroll
    for (int n = 0; n < Half / 8; ++n) {
      std::uint32_t four[4];
      ptx::load_matrices_transposed(four, columns_further(fragment, n) + offset + k * 16 * (D * 2));
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) {
        multiply<T>(sums[m], 8 * n, rows[m], four[0], four[1]);
        multiply<T>(sums[m], 8 * n + 4, rows[m], four[2], four[3]);
      }
    }
  }
}

/// The loader of weights that a warp has in its own accumulators, packed in pairs.
template <int RowTiles, int Columns = 64>
struct PackedWeights {
  std::uint32_t words[RowTiles][Columns / 4];

  __device__ void operator()(int k, int m, std::uint32_t (&rows)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = words[m][4 * k + i];
  }
};

}  // namespace vidsparse::cuda::sm80
