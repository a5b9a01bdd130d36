#include "cuda/common/fragment_table.cuh"

#include <algorithm>

#include "cuda/common/context.hpp"

namespace vidsparse::cuda {
namespace {

__global__ void fragment_table_kernel(const __grid_constant__ Side side,
                                      const __grid_constant__ EdgeBoxes edges, std::int32_t batches,
                                      KeyFragment* table, std::uint32_t* counters,
                                      std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += step) counters[i] = 0;
  const std::int32_t fragments = side.fragments();
  for (std::int64_t i = first; i < std::int64_t{fragments} * batches; i += step) {
    const auto batch = static_cast<std::int32_t>(i / fragments);
    const auto index = static_cast<std::int32_t>(i - std::int64_t{batch} * fragments);
    const std::int32_t tile = index / side.fragments_per_tile;
    const Fragment fragment =
        edges.ordered(side.fragment(batch, tile, index - tile * side.fragments_per_tile));
    KeyFragment entry;
    entry.valid = fragment.valid_slots();
    if (entry.valid != 0) {
      const std::int32_t edge = edges.find(fragment);
      if (edge >= 0) entry.valid = KeyFragment::edge(entry.valid, edges.boxes[edge].units());
      entry.w = fragment.origin.w;
      entry.place = KeyFragment::pack(fragment.origin.h, fragment.origin.t,
                                      edge >= 0 ? Side::kMaxSegments + edge : fragment.segment);
    }
    table[i] = entry;
  }
}

}  // namespace

void fill_fragment_table(const Side& side, std::int32_t batches, KeyFragment* table,
                         std::uint32_t* counters, std::int64_t count, cudaStream_t stream,
                         const EdgeBoxes& edges) {
  constexpr std::int64_t kThreads = 256;
  const std::int64_t entries = std::int64_t{side.fragments()} * batches;
  const std::int64_t blocks = (std::max(entries, count) + kThreads - 1) / kThreads;
  if (blocks == 0) return;
  fragment_table_kernel<<<static_cast<unsigned>(std::min<std::int64_t>(blocks, 1024)), kThreads, 0,
                          stream>>>(side, edges, batches, table, counters, count);
  check(cudaGetLastError(), "fragment table");
}

}  // namespace vidsparse::cuda
