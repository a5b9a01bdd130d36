#pragma once

namespace vidsparse::ptx {

/// PTX ISA 9.7.9.16 prefetch: the cache line at `address` in global memory is brought into L2.
__device__ inline void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
}

}  // namespace vidsparse::ptx
