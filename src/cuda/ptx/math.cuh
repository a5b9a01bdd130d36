#pragma once

/// Approximate arithmetic (PTX ISA 9.7.3).
namespace vidsparse::ptx {

/// 9.7.3.21 ex2.approx: 2^x, relative error below 2^-22; subnormal results become 0.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace vidsparse::ptx
