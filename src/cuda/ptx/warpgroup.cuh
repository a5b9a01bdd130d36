#pragma once

#include <cstdint>

/// Registers and barriers of a warpgroup (four warps).
namespace vidsparse::ptx {

/// 9.7.19.5 setmaxnreg: gives registers of this warpgroup back to the block's pool.
template <int Registers>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// 9.7.19.5 setmaxnreg: takes registers from the pool, waiting until there are enough.
template <int Registers>
__device__ inline void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// 9.7.13.1 barrier.sync: named barrier `id` (1..15) of `threads` threads.
__device__ inline void barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// 9.7.13.1 barrier.red.and: the same, and whether `predicate` holds in all of them.
__device__ inline bool barrier_all(uint32_t id, uint32_t threads, bool predicate) {
  uint32_t all;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %3, 0;\n"
      "barrier.cta.red.and.pred.aligned q, %1, %2, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}"
      : "=r"(all)
      : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(predicate))
      : "memory");
  return all != 0;
}

}  // namespace vidsparse::ptx
