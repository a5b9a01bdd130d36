#include <bit>

#include "cpu/isa.hpp"
#include "cpu/vec_avx512.hpp"
// The kernels need Vec.
#include "cpu/bf16_impl.hpp"
#include "cpu/kernels_impl.hpp"

namespace vidsparse::cpu {
namespace {

struct DotBf16Step {
  static Vec step(Vec a, Vec b, Vec c) { return {_mm512_dpbf16_ps(c.v, words(a), words(b))}; }
  static __m512bh words(Vec x) { return std::bit_cast<__m512bh>(x.v); }
};

}  // namespace

const Kernels& avx512_bf16_kernels() {
  static constexpr Kernels kKernels = [] {
    Kernels kernels = fp32_kernels("avx512_bf16");
    kernels.product_bf16 = product<DotBf16Step>;
    kernels.softmax_bf16 = softmax_bf16;
    kernels.gradient_bf16 = gradient_bf16;
    return kernels;
  }();
  return kKernels;
}

}  // namespace vidsparse::cpu
