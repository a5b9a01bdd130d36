#pragma once

#include <cstdint>

// Copies from global to shared memory that run beside the thread that asks for them, sm_80 and
// later. PTX ISA, "cp.async".

namespace vidsparse::ptx {

/// 16 bytes, both addresses aligned to 16; zeros instead of them where `there` is false.
__device__ inline void copy_async_16(std::uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}

/// Always there.
__device__ inline void copy_async_16(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}

/// The same for 4 bytes.
__device__ inline void copy_async_4(std::uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(to), "l"(from), "r"(there ? 4 : 0)
               : "memory");
}

/// Until all copies this thread asked for have arrived.
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

/// What this thread has asked for since the last such call is one group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

/// Until all but the last `Groups` groups of this thread have arrived.
template <int Groups>
__device__ inline void wait_copy_groups() {
  asm volatile("cp.async.wait_group %0;" : : "n"(Groups) : "memory");
}

}  // namespace vidsparse::ptx
