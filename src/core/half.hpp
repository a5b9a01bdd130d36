#pragma once

#include <bit>
#include <cstdint>

namespace vidsparse::core {

// Conversions of the 16-bit floating types. Narrowing rounds to nearest, ties to even, makes
// subnormals, overflows to infinity and keeps a NaN a (quiet) NaN; widening is exact.

namespace detail {

/// `value` >> `shift`, rounded to nearest even. `shift` is in [1, 63].
constexpr std::uint64_t shift_rounding_even(std::uint64_t value, int shift) {
  const std::uint64_t kept = value >> shift;
  const std::uint64_t rest = value & ((std::uint64_t{1} << shift) - 1);
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);
  return kept + ((rest > half || (rest == half && (kept & 1U) != 0)) ? 1 : 0);
}

/// From fp64 in one rounding: going through fp32 would round twice.
template <int kExponentBits, int kMantissaBits>
constexpr std::uint16_t narrow(double value) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr std::uint64_t kInfinity = ((std::uint64_t{1} << kExponentBits) - 1) << kMantissaBits;
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 63) << 15);
  const std::uint64_t mantissa = bits & ((std::uint64_t{1} << 52) - 1);
  const int exponent = static_cast<int>((bits >> 52) & 0x7FF);
  if (exponent == 0x7FF) {
    const std::uint64_t quiet = mantissa == 0 ? 0 : std::uint64_t{1} << (kMantissaBits - 1);
    return static_cast<std::uint16_t>(sign | kInfinity | quiet);
  }
  const int biased = exponent - 1023 + kBias;
  if (biased < -kMantissaBits) return sign;  // less than half of the smallest subnormal
  std::uint64_t magnitude;
  if (biased > 0) {
    // A carry out of the mantissa rightly grows the exponent, up to infinity.
    const std::uint64_t whole = (static_cast<std::uint64_t>(biased) << 52) | mantissa;
    magnitude = shift_rounding_even(whole, 52 - kMantissaBits);
  } else {
    const std::uint64_t whole = (std::uint64_t{1} << 52) | mantissa;
    magnitude = shift_rounding_even(whole, 53 - kMantissaBits - biased);
  }
  return static_cast<std::uint16_t>(sign | (magnitude < kInfinity ? magnitude : kInfinity));
}

}  // namespace detail

constexpr std::uint16_t to_f16(double value) { return detail::narrow<5, 10>(value); }

/// bf16 has the exponent of fp32, so fp32 is rounded in integers; the fast way in.
constexpr std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
constexpr std::uint16_t to_bf16(double value) { return detail::narrow<8, 7>(value); }

constexpr float from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

constexpr float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in fp32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t wide = exponent == 0x1FU ? 0xFFU : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

}  // namespace vidsparse::core
