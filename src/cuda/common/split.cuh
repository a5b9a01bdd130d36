#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// fp32 products on bf16 tensor cores. x = high + low + e with |e| <= 2^-18 |x|, so three of the
// four products, high * high + high * low + low * high, have an error below 2^-16 |x y|. The low
// part of an infinity or NaN is NaN, so a product with either is NaN, and whoever finds a NaN works
// it out anew in fp32. Tensor cores cut their sums off instead of rounding them: long sums must be
// taken in pieces that are added elsewhere.

namespace vidsparse::cuda {

/// Two numbers, split; the first is in the lower half of each word.
struct SplitPair {
  std::uint32_t high;
  std::uint32_t low;
};

__device__ inline std::uint32_t bits_of(__nv_bfloat162 pair) {
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

__device__ inline SplitPair split(float x, float y) {
  const std::uint32_t high = bits_of(__floats2bfloat162_rn(x, y));
  const float low_x = x - __uint_as_float(high << 16);
  const float low_y = y - __uint_as_float(high & 0xFFFF0000U);
  return {high, bits_of(__floats2bfloat162_rn(low_x, low_y))};
}

/// One number: high part in the upper half, low part in the lower.
__device__ inline std::uint32_t split(float x) {
  const SplitPair pair = split(x, 0.0f);
  return pair.high << 16 | (pair.low & 0xFFFFU);
}

/// Back from split(x).
__device__ inline float joined(std::uint32_t word) {
  return __uint_as_float(word & 0xFFFF0000U) + __uint_as_float(word << 16);
}

}  // namespace vidsparse::cuda
