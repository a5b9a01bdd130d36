#include "cpu/isa.hpp"
#include "cpu/vec_avx512.hpp"
// The kernels need Vec.
#include "cpu/kernels_impl.hpp"

namespace vidsparse::cpu {

const Kernels& avx512_kernels() {
  static constexpr Kernels kKernels = fp32_kernels("avx512");
  return kKernels;
}

}  // namespace vidsparse::cpu
