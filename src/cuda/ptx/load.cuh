#pragma once

#include <cstdint>

// Loads from global memory that say which caches they want. PTX ISA, "ld".

namespace vidsparse::ptx {

/// 8 bytes that a thread block reads once: past its multiprocessor's own cache.
__device__ inline uint2 load_8(const void* from) {
  uint2 words;
  asm volatile("ld.global.cg.v2.b32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(from));
  return words;
}

/// 16 bytes, the same.
__device__ inline uint4 load_16(const void* from) {
  uint4 words;
  asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

}  // namespace vidsparse::ptx
