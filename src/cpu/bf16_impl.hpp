#pragma once

#include <bit>

#include "cpu/softmax_impl.hpp"

// The row operations whose results are operands of a bf16 product: AVX512-BF16 rounds them.
// Internal linkage: see vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

/// 16 values rounded to bf16, widened to the low half of 16 words.
inline __m512i bf16_words(Vec x) {
  return _mm512_cvtepu16_epi32(std::bit_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}

inline void store_bf16(std::uint16_t* out, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      std::bit_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}

inline void softmax_bf16(const SoftmaxBlock& block) {
  softmax(block, [&](int row, int i, Vec p) { store_bf16(block.p + row * block.ldp + i, p); });
}

inline void gradient_bf16(const GradientBlock& block) {
  const std::ptrdiff_t pitch = 2 * block.ld_words;
  gradient(block, [&](int key, int i, Vec p, Vec ds) {
    store_bf16(block.p + key * pitch + i, p);
    store_bf16(block.ds + key * pitch + i, ds);
    // Words of two keys: the even key writes the low halves, the odd one adds the high halves.
    std::uint32_t* pairs = block.ds_pairs + (key / 2) * block.queries + i;
    __m512i words = bf16_words(ds);
    if (key % 2 != 0) {
      words = _mm512_or_si512(_mm512_loadu_si512(pairs), _mm512_slli_epi32(words, 16));
    }
    _mm512_storeu_si512(pairs, words);
  });
}

}  // namespace
}  // namespace vidsparse::cpu
