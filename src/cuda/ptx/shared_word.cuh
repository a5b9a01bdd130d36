#pragma once

#include <cstdint>

/// Words of shared memory that hand something over between warps of a block (PTX ISA 8, memory
/// consistency model). `address` is a shared-window address.
namespace vidsparse::ptx {

/// 9.7.9.12 st.release: what this thread wrote before is seen by whoever acquires the word.
__device__ inline void store_release(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

/// 9.7.9.8 ld.acquire
__device__ inline std::uint32_t load_acquire(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

/// 9.7.9.8 ld.relaxed: the word alone.
__device__ inline std::uint32_t load_relaxed(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.relaxed.cta.shared::cta.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

}  // namespace vidsparse::ptx
