#pragma once

/// Special registers (PTX ISA 10), read anew each time: what follows from them is worked out where
/// it is needed, where the compiler would keep what follows from threadIdx in registers.
namespace vidsparse::ptx {

/// 10.1 %tid
__device__ inline int thread_index() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// 10.8 %laneid
__device__ inline int lane_index() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// 10.10 %ctaid
__device__ inline int3 block_index() {
  int3 block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block.x));
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(block.y));
  asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(block.z));
  return block;
}

}  // namespace vidsparse::ptx
