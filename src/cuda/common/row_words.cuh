#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// Rows of 16-bit elements as words of two.

namespace vidsparse::cuda {

/// Two elements in one register, `low` in its lower half.
template <class T>
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  }
  return word;
}

/// Two elements of a row as numbers.
template <class T>
__device__ inline float2 unpack(std::uint32_t word) {
  if constexpr (std::is_same_v<T, __half>) {
    __half2 pair;
    memcpy(&pair, &word, sizeof(word));
    return __half22float2(pair);
  } else {
    __nv_bfloat162 pair;
    memcpy(&pair, &word, sizeof(word));
    return __bfloat1622float2(pair);
  }
}

/// Four registers of each thread of a quad, exchanged so that thread t of it holds register t of
/// all four, in their order.
__device__ inline void transpose_quad(std::uint32_t (&x)[4], int t) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const bool upper = t & step;
      const std::uint32_t given = upper ? x[i] : x[i + step];
      const std::uint32_t got = __shfl_xor_sync(~0U, given, step);
      if (upper) {
        x[i] = got;
      } else {
        x[i + step] = got;
      }
    }
  }
}

}  // namespace vidsparse::cuda
