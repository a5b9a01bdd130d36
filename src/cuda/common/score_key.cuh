#pragma once

#include <cstdint>

namespace vidsparse::cuda {

// Scores as unsigned integers in the order of selection: -0 and +0 are one, NaN comes below -inf,
// and what is no score (an empty or missing tile) below that.

inline constexpr std::uint32_t kNoScore = 0;
inline constexpr std::uint32_t kNanScore = 1;

__device__ inline std::uint32_t key_of(float score) {
  if (score != score) return kNanScore;
  const std::uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline float score_of(std::uint32_t key) {
  if (key == kNanScore) return __uint_as_float(0x7FC00000U);
  return __uint_as_float((key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key);
}

}  // namespace vidsparse::cuda
