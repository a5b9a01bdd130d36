#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Warp-level products of sm_80 and later.

namespace vidsparse::ptx {

/// sum += a * b over 16x8x16, bf16 factors or fp16 ones (T = __half), fp32 sums. With g = lane / 4
/// and t = lane % 4, two elements a word, the lane holds a at rows g, g+8, g, g+8 and columns 2t,
/// 2t, 2t+8, 2t+8; b at rows 2t, 2t+8 of column g; sums at rows g, g, g+8, g+8 and columns 2t,
/// 2t+1, 2t, 2t+1. PTX ISA, "mma.m16n8k16".
template <class T>
__device__ inline void mma_m16n8k16(float& sum0, float& sum1, float& sum2, float& sum3,
                                    const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <class T = __nv_bfloat16>
__device__ inline void mma_m16n8k16(float (&sum)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
  mma_m16n8k16<T>(sum[0], sum[1], sum[2], sum[3], a, b[0], b[1]);
}

/// sum += a * b over 16x8x8, factors in tf32, fp32 sums. With g = lane / 4 and t = lane % 4 the
/// lane holds a at rows g, g+8, g, g+8 and columns t, t, t+4, t+4; b at rows t, t+4 of column g;
/// sums as above. PTX ISA, "mma.m16n8k8".
__device__ inline void mma_m16n8k8(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

/// The nearest number of tf32: fp32 with 10 bits after the point. PTX ISA, "cvt.rna.tf32".
__device__ inline float round_tf32(float x) {
  std::uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return __uint_as_float(word);
}

/// The address of an object in shared memory as instructions on it take it.
__device__ inline std::uint32_t shared_address(const void* object) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(object));
}

}  // namespace vidsparse::ptx
