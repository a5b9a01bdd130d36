#include "cpu/isa.hpp"
#include "cpu/vec_scalar.hpp"
// The kernels need Vec.
#include "cpu/kernels_impl.hpp"

namespace vidsparse::cpu {

const Kernels& scalar_kernels() {
  static constexpr Kernels kKernels = fp32_kernels("scalar");
  return kKernels;
}

}  // namespace vidsparse::cpu
