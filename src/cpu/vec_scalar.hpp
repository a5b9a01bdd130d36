#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

// Four fp32 lanes in plain C++, for the compiler to vectorise as it can: the path of machines
// without any of the other ISAs. Internal linkage: see vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

inline float float_of_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t bf16_of_float(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // quiet, never infinite
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float float_of_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t rest = half & 0x7fffU;
  if (rest >= 0x7c00U) {  // infinity or NaN, made quiet as the hardware does
    const std::uint32_t mantissa = (rest & 0x3ffU) << 13;
    return std::bit_cast<float>(sign | 0x7f800000U | mantissa | (mantissa != 0 ? 0x400000U : 0U));
  }
  if (rest >= 0x400U) return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000U));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal or zero: exact
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

inline std::uint16_t f16_of_float(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  } else if (magnitude >= 0x477ff000U) {  // 65520 and above round to infinity
    half = 0x7c00U;
  } else if (magnitude >= 0x38800000U) {  // normal: round the 13 dropped bits to nearest even
    half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  } else {  // adding 1/2 leaves multiples of 2^-24 in the low bits, rounded by the addition
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U;
  }
  return static_cast<std::uint16_t>(sign | half);
}

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int rows_of_block(int) { return 4; }
  static constexpr int kMaxWidth = 2;

  float v[kLanes];

  template <class F>
  static Vec each(F&& lane) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = lane(i);
    return r;
  }

  static void prefetch(const char*) {}

  static Vec zero() { return set1(0.0f); }
  static Vec set1(float x) {
    return each([&](int) { return x; });
  }
  static Vec broadcast(const float* p) { return set1(*p); }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  void store(float* p) const { std::memcpy(p, v, sizeof v); }

  friend Vec operator+(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  /// a * b + c, rounded once or twice as the target does it fast.
  static Vec fma(Vec a, Vec b, Vec c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  /// a * b - c, likewise.
  static Vec fms(Vec a, Vec b, Vec c) {
    return each([&](int i) { return a.v[i] * b.v[i] - c.v[i]; });
  }
  /// The larger; b where either is NaN.
  static Vec max(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }

  float reduce_max() const {
    const float a = v[0] > v[1] ? v[0] : v[1];
    const float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  float reduce_add() const { return (v[0] + v[1]) + (v[2] + v[3]); }

  /// 2^x = 2^n * p(x - n); see vec_avx2.hpp.
  template <class Polynomial>
  static Vec exp2(Vec x, Polynomial polynomial) {
    const float magic = 12583039.0f;  // 1.5 * 2^23 + 127
    const Vec bounded = each([&](int i) {
      const float low = x.v[i] < -126.0f ? -126.0f : x.v[i];
      return low > 128.0f ? 128.0f : low;
    });
    const Vec shifted = bounded + set1(magic);
    const Vec value = polynomial(bounded - (shifted - set1(magic)));
    return each([&](int i) {
      const float power = std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted.v[i]) << 23);
      return x.v[i] < -126.0f ? 0.0f : value.v[i] * power;
    });
  }
  static constexpr bool kFractionFromZero = false;

  static std::uint16_t half_at(const void* p, int i) {
    std::uint16_t bits;
    std::memcpy(&bits, static_cast<const char*>(p) + 2 * i, 2);
    return bits;
  }
  static Vec load_bf16(const void* p) {
    return each([&](int i) { return float_of_bf16(half_at(p, i)); });
  }
  static Vec load_f16(const void* p) {
    return each([&](int i) { return float_of_f16(half_at(p, i)); });
  }
  void store_bf16(void* p) const {
    std::uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; ++i) halves[i] = bf16_of_float(v[i]);
    std::memcpy(p, halves, sizeof halves);
  }
  void store_f16(void* p) const {
    std::uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; ++i) halves[i] = f16_of_float(v[i]);
    std::memcpy(p, halves, sizeof halves);
  }

  /// Words of two elements to the earlier and the later ones.
  static void split_bf16(const std::uint32_t* words, Vec& low, Vec& high) {
    low = each([&](int i) { return std::bit_cast<float>(words[i] << 16); });
    high = each([&](int i) { return std::bit_cast<float>(words[i] & 0xffff0000U); });
  }
  static void split_f16(const std::uint32_t* words, Vec& low, Vec& high) {
    low = each([&](int i) { return float_of_f16(static_cast<std::uint16_t>(words[i])); });
    high = each([&](int i) { return float_of_f16(static_cast<std::uint16_t>(words[i] >> 16)); });
  }
  /// kLanes words with a[i] in the low and b[i] in the high half.
  static void interleave(const void* a, const void* b, std::uint32_t* out) {
    for (int i = 0; i < kLanes; ++i) {
      out[i] = half_at(a, i) | (static_cast<std::uint32_t>(half_at(b, i)) << 16);
    }
  }
  /// out[w][i] = rows[i][w], 4 x 4 words.
  static void transpose(const std::uint32_t* const* rows, std::uint32_t* out, std::ptrdiff_t ldo) {
    for (int i = 0; i < kLanes; ++i) {
      std::uint32_t row[kLanes];  // a row may be aligned to its 16-bit elements only
      std::memcpy(row, rows[i], sizeof row);
      for (int w = 0; w < kLanes; ++w) out[w * ldo + i] = row[w];
    }
  }
};

}  // namespace
}  // namespace vidsparse::cpu
