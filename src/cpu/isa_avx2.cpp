#include "cpu/isa.hpp"
#include "cpu/vec_avx2.hpp"
// The kernels need Vec.
#include "cpu/kernels_impl.hpp"

namespace vidsparse::cpu {

const Kernels& avx2_kernels() {
  static constexpr Kernels kKernels = fp32_kernels("avx2");
  return kKernels;
}

}  // namespace vidsparse::cpu
