#pragma once

/// Special registers (PTX ISA 10), read anew each time: what follows from them is worked out where
/// it is needed, where the compiler would keep what follows from threadIdx in registers.
namespace vidsparse::ptx {

/// 10.8 %laneid
__device__ inline int lane_index() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// 10.10 %ctaid
__device__ inline int block_index() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

}  // namespace vidsparse::ptx
