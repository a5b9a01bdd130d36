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

/// 9.7.2.1 add.cc, addc: count + 1 where a + b does not fit 32 bits, in two instructions.
__device__ inline void count_carry(std::uint32_t& count, std::uint32_t a, std::uint32_t b) {
  asm("{\n"
      ".reg .u32 sum;\n"
      "add.cc.u32 sum, %1, %2;\n"
      "addc.u32 %0, %0, 0;\n"
      "}"
      : "+r"(count)
      : "r"(a), "r"(b));
}

/// 9.7.3.21 ex2.approx: 2^x, relative error below 2^-22; subnormal results become 0.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace vidsparse::ptx
