#pragma once

#include <cstdint>

namespace vidsparse::cuda {

// Scores as unsigned integers in the order of selection: -0 and +0 are one, NaN comes below -inf,
// and what is no score (an empty or missing tile) below that.

inline constexpr std::uint32_t kNoScore = 0;
inline constexpr std::uint32_t kNanScore = 1;

/// Of a score that is no NaN, -0 excepted.
__device__ inline std::uint32_t key_of_number(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000U);
}

__device__ inline std::uint32_t key_of(float score) {
  return score != score ? kNanScore : key_of_number(score + 0.0f);
}

/// Of what is no score, some NaN.
__device__ inline float score_of_any(std::uint32_t key) {
  const std::uint32_t positive = static_cast<std::uint32_t>(static_cast<std::int32_t>(key) >> 31);
  return __uint_as_float(key ^ (~positive | 0x80000000U));
}

__device__ inline float score_of(std::uint32_t key) {
  return key == kNanScore ? __uint_as_float(0x7FC00000U) : score_of_any(key);
}

}  // namespace vidsparse::cuda
