#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/list_order_fill.cuh"

namespace vidsparse::cuda {

/// What the kThreads threads of block `block` of `blocks` do of it.
__device__ inline void fill_part(const TableWork& work, unsigned block, unsigned blocks) {
  const Side& side = work.side;
  const std::int64_t step = std::int64_t{blocks} * TableWork::kThreads;
  const std::int64_t first = std::int64_t{block} * TableWork::kThreads + threadIdx.x;
  for (std::int64_t i = first; i < work.counter_count; i += step) work.counters[i] = 0;
  const std::int32_t fragments = side.fragments();
  for (std::int64_t i = first; i < std::int64_t{fragments} * work.batches; i += step) {
    const auto batch = static_cast<std::int32_t>(i / fragments);
    const auto index = static_cast<std::int32_t>(i - std::int64_t{batch} * fragments);
    const std::int32_t tile = index / side.fragments_per_tile;
    const Fragment fragment =
        work.edges.ordered(side.fragment(batch, tile, index - tile * side.fragments_per_tile));
    KeyFragment entry;
    entry.valid = fragment.valid_slots();
    if (entry.valid != 0) {
      const std::int32_t edge = work.edges.find(fragment);
      if (edge >= 0) {
        entry.valid = KeyFragment::edge(entry.valid, work.edges.boxes[edge].units());
      }
      entry.w = fragment.origin.w;
      entry.place = KeyFragment::pack(fragment.origin.h, fragment.origin.t,
                                      edge >= 0 ? Side::kMaxSegments + edge : fragment.segment);
    }
    work.table[i] = entry;
  }
  if (work.order.planes == 0) return;
  __shared__ ListSorter::Shared shared;
  ListSorter(work.order, shared).run(block, blocks);
}

}  // namespace vidsparse::cuda
