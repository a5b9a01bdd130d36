#pragma once

#include <cstdint>

/// Arithmetic that C++ does not say (PTX ISA 9.7).
namespace vidsparse::ptx {

/// 9.7.1.4 mad.wide: base + a * b bytes in one instruction, which compilers take apart.
__device__ inline const char* advance(const char* base, std::int32_t a, std::int32_t b) {
  const char* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(a), "r"(b), "l"(base));
  return result;
}

/// 9.7.3.21 ex2.approx: 2^x, relative error below 2^-22; subnormal results become 0.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace vidsparse::ptx
