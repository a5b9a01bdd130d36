#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Sixteen fp32 lanes. Like everything the ISA files include, it has internal linkage: each of them
// is compiled with flags of its own, and the linker must not pick one's code for another.

namespace vidsparse::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  /// Rows of a register block that is `n` vectors wide: at most 24 accumulators, so that B, A and
  /// they fit 32 registers.
  static constexpr int rows_of_block(int n) { return n == 4 ? 6 : n == 3 ? 8 : 12; }
  static constexpr int kMaxWidth = 4;

  __m512 v;

  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static Vec broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  /// a * b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  /// a * b - c
  static Vec fms(Vec a, Vec b, Vec c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
  /// The larger; b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }

  float reduce_max() const { return _mm512_reduce_max_ps(v); }
  float reduce_add() const { return _mm512_reduce_add_ps(v); }

  /// 2^x: floor and fraction come from vreduceps and vscalefps, which also do the right thing for
  /// NaN, infinities and subnormal results. The polynomial is `exp2_fraction` on [0, 1).
  template <class Polynomial>
  static Vec exp2(Vec x, Polynomial polynomial) {
    const Vec fraction{_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    return {_mm512_scalef_ps(polynomial(fraction).v, x.v)};
  }
  static constexpr bool kFractionFromZero = true;

  static Vec load_bf16(const void* p) {
    const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Vec load_f16(const void* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
  }
  void store_bf16(void* p) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    rounded = _mm512_mask_mov_epi32(rounded, nan, quiet);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }
  void store_f16(void* p) const {
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  /// Words of two elements to the earlier and the later ones.
  static void split_bf16(const std::uint32_t* words, Vec& low, Vec& high) {
    const __m512i w = _mm512_loadu_si512(words);
    low.v = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    high.v = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-65536)));
  }
  static void split_f16(const std::uint32_t* words, Vec& low, Vec& high) {
    const __m512i w = _mm512_loadu_si512(words);
    low.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w));
    high.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(w, 16)));
  }
  /// kLanes words with a[i] in the low and b[i] in the high half.
  static void interleave(const void* a, const void* b, std::uint32_t* out) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(a)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(b)));
    _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }

  /// out[w][i] = rows[i][w], 16 x 16 words.
  static void transpose(const std::uint32_t* const* rows, std::uint32_t* out, std::ptrdiff_t ldo) {
    __m512 r[16];
    __m512 s[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(reinterpret_cast<const float*>(rows[i]));
    for (int i = 0; i < 16; i += 2) {
      s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    const auto lo64 = [](__m512 a, __m512 b) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto hi64 = [](__m512 a, __m512 b) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    for (int i = 0; i < 16; i += 4) {  // r[i + j]: column 4q + j of the rows i..i+3, quarter q
      r[i] = lo64(s[i], s[i + 2]);
      r[i + 1] = hi64(s[i], s[i + 2]);
      r[i + 2] = lo64(s[i + 1], s[i + 3]);
      r[i + 3] = hi64(s[i + 1], s[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
      const __m512 even_top = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
      const __m512 odd_top = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
      const __m512 even_bottom = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
      const __m512 odd_bottom = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
      const auto put = [&](int row, __m512 x) {
        _mm512_storeu_ps(reinterpret_cast<float*>(out + row * ldo), x);
      };
      put(j, _mm512_shuffle_f32x4(even_top, even_bottom, 0x88));
      put(j + 4, _mm512_shuffle_f32x4(odd_top, odd_bottom, 0x88));
      put(j + 8, _mm512_shuffle_f32x4(even_top, even_bottom, 0xdd));
      put(j + 12, _mm512_shuffle_f32x4(odd_top, odd_bottom, 0xdd));
    }
  }
};

}  // namespace
}  // namespace vidsparse::cpu
