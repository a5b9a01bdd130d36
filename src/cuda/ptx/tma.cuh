#pragma once

#include <cuda.h>

#include <cstdint>

/// The bulk tensor copy engine (PTX ISA 9.7.9.27).
namespace vidsparse::ptx {

/// 9.7.9.27.1.2 cp.async.bulk.tensor, five dimensions, global to shared: the box of `map` at
/// coordinates c0 (innermost) .. c4 to `destination`; its bytes complete on `barrier`.
__device__ inline void tma_load(uint32_t destination, const CUtensorMap* map, uint32_t barrier,
                                int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

/// 9.7.9.27.1.1 cp.async.bulk, global to shared: `bytes` in a row, a multiple of 16 as both
/// addresses are; they complete on `barrier`.
__device__ inline void bulk_load(uint32_t destination, const void* source, uint32_t bytes,
                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

/// 9.7.13.4 fence.proxy.async: ordinary writes to shared memory become visible to wgmma and TMA.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace vidsparse::ptx
