#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Eight fp32 lanes: AVX2, FMA and F16C. Internal linkage: see vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  /// 12 accumulators, 2 vectors of B and a broadcast fit 16 registers.
  static constexpr int rows_of_block(int n) { return n == 2 ? 6 : 8; }
  static constexpr int kMaxWidth = 2;

  __m256 v;

  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  /// a * b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  /// a * b - c
  static Vec fms(Vec a, Vec b, Vec c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
  /// The larger; b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }

  float reduce_max() const {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  float reduce_add() const {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }

  /// 2^x = 2^n * p(x - n). Adding 1.5 * 2^23 + 127 leaves n + 127, the exponent field of 2^n, in
  /// the low bits. Results below 2^-126 are zero, above 2^127.5 infinite; NaN stays NaN (min and
  /// max return their second operand then).
  template <class Polynomial>
  static Vec exp2(Vec x, Polynomial polynomial) {
    const __m256 low = _mm256_set1_ps(-126.0f);
    const __m256 magic = _mm256_set1_ps(12583039.0f);
    const __m256 vanishes = _mm256_cmp_ps(x.v, low, _CMP_LT_OQ);
    x.v = _mm256_min_ps(_mm256_set1_ps(128.0f), _mm256_max_ps(low, x.v));
    const __m256 shifted = _mm256_add_ps(x.v, magic);
    const Vec fraction{_mm256_sub_ps(x.v, _mm256_sub_ps(shifted, magic))};
    const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
    return {_mm256_andnot_ps(vanishes, _mm256_mul_ps(polynomial(fraction).v, power))};
  }
  static constexpr bool kFractionFromZero = false;

  static Vec load_bf16(const void* p) {
    const __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static Vec load_f16(const void* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
  }
  void store_bf16(void* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  void store_f16(void* p) const {
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  /// Words of two elements to the earlier and the later ones.
  static void split_bf16(const std::uint32_t* words, Vec& low, Vec& high) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    low.v = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    high.v = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-65536)));
  }
  static void split_f16(const std::uint32_t* words, Vec& low, Vec& high) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i lows = _mm256_and_si256(w, _mm256_set1_epi32(0xffff));
    // Per 128-bit lane: four low halves, then four high ones.
    const __m256i both = _mm256_packus_epi32(lows, _mm256_srli_epi32(w, 16));
    const __m256i sorted = _mm256_permute4x64_epi64(both, 0xd8);
    low.v = _mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
    high.v = _mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1));
  }
  /// kLanes words with a[i] in the low and b[i] in the high half.
  static void interleave(const void* a, const void* b, std::uint32_t* out) {
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(a)));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(b)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
  }

  /// out[w][i] = rows[i][w], 8 x 8 words.
  static void transpose(const std::uint32_t* const* rows, std::uint32_t* out, std::ptrdiff_t ldo) {
    __m256 r[8];
    __m256 s[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows[i]));
    for (int i = 0; i < 8; i += 2) {
      s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(reinterpret_cast<float*>(out + j * ldo),
                       _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
      _mm256_storeu_ps(reinterpret_cast<float*>(out + (j + 4) * ldo),
                       _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
    }
  }
};

}  // namespace
}  // namespace vidsparse::cpu
