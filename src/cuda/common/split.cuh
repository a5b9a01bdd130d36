#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// fp32 products on bf16 tensor cores. x = high + low + e with |e| <= 2^-18 |x|, so three of the
// four products, high * high + high * low + low * high, have an error below 2^-16 |x y|. An
// infinity or NaN is a high part alone. What comes of it is then right or NaN (0 * inf of a low
// part), and whoever finds a NaN works it out anew in fp32. Tensor cores cut their sums off instead
// of rounding them: long sums must be taken in pieces that are added elsewhere.

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

/// Two numbers of which neither is infinite; a NaN is one in both parts.
__device__ inline SplitPair split_finite(float x, float y) {
  const std::uint32_t high = bits_of(__floats2bfloat162_rn(x, y));
  const float low_x = x - __uint_as_float(high << 16);
  const float low_y = y - __uint_as_float(high & 0xFFFF0000U);
  return {high, bits_of(__floats2bfloat162_rn(low_x, low_y))};
}

/// Any number's high part: the nearest of bf16, but finite for every finite number.
__device__ inline float high_part(float x) {
  const float nearest = __bfloat162float(__float2bfloat16_rn(x));
  const bool beyond = isinf(nearest) && !isinf(x);
  return beyond ? __uint_as_float(__float_as_uint(x) & 0xFFFF0000U) : nearest;
}

/// Any two numbers.
__device__ inline SplitPair split(float x, float y) {
  const float high_x = high_part(x);
  const float high_y = high_part(y);
  const float low_x = isfinite(x) ? x - high_x : 0.0f;
  const float low_y = isfinite(y) ? y - high_y : 0.0f;
  return {bits_of(__floats2bfloat162_rn(high_x, high_y)),
          bits_of(__floats2bfloat162_rn(low_x, low_y))};
}

/// Splits four numbers of a pooled row (pooled_planes.hpp) of kD, from `column`, a multiple of 4.
template <int kD>
__device__ inline void store_planes(std::uint32_t* row, int column, const float4& four) {
  const SplitPair front = split(four.x, four.y);
  const SplitPair back = split(four.z, four.w);
  *reinterpret_cast<uint2*>(row + column / 2) = make_uint2(front.high, back.high);
  *reinterpret_cast<uint2*>(row + (kD + column) / 2) = make_uint2(front.low, back.low);
}

/// One of the two numbers of a pair again.
__device__ inline float joined(std::uint32_t high, std::uint32_t low, bool second) {
  const std::uint32_t shift = second ? 0 : 16;
  return __uint_as_float(high << shift & 0xFFFF0000U) + __uint_as_float(low << shift & 0xFFFF0000U);
}

}  // namespace vidsparse::cuda
