#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "cuda/common/edge_box.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/common/list_order.hpp"

namespace vidsparse::cuda {

/// A key fragment as an attend kernel needs it: where a bulk tensor copy finds it and which of its
/// slots hold valid tokens. Worked out once a call, so that loading threads never divide.
struct alignas(16) KeyFragment {
  std::int32_t w = 0;       ///< coordinates of slot 0 in its segment's grid
  std::uint32_t place = 0;  ///< h, t and the map: the segment, or an edge box, see below
  std::uint64_t valid = 0;  ///< bit s: slot s; 0: nothing to attend; of an edge box, see below

  // What lies in an edge box has its valid slots, at most 32, in the low half, and in the high half
  // the units it takes and the last bit: no fragment has its last slot valid without all others
  // (where rows without weights leave one like that, prepare_rows tells another slot).
  static constexpr std::uint32_t kEdge = 1U << 31;
  static constexpr std::uint64_t edge(std::uint64_t valid_slots, std::int32_t units) {
    return std::uint64_t{kEdge | static_cast<std::uint32_t>(units)} << 32 | valid_slots;
  }
  static constexpr bool is_edge(std::uint32_t high) { return (high & kEdge) != 0 && high != ~0U; }
  static constexpr std::int32_t units(std::uint32_t high) {
    return static_cast<std::int32_t>(high & ~kEdge);
  }

  static constexpr std::int32_t kMaxHeight = 1 << 16;
  static constexpr std::int32_t kMaxFrames = 1 << 12;

  static constexpr std::uint32_t pack(std::int32_t h, std::int32_t t, std::int32_t map) {
    return static_cast<std::uint32_t>(h) | static_cast<std::uint32_t>(t) << 16 |
           static_cast<std::uint32_t>(map) << 28;
  }
  static constexpr std::int32_t height(std::uint32_t place) {
    return static_cast<std::int32_t>(place & 0xFFFF);
  }
  static constexpr std::int32_t frame(std::uint32_t place) {
    return static_cast<std::int32_t>(place >> 16 & 0xFFF);
  }
  static constexpr std::int32_t map(std::uint32_t place) {
    return static_cast<std::int32_t>(place >> 28);
  }
};

/// A table to be filled, [batches, tiles * fragments per tile] in order of tile and fragment, and
/// counters to be zeroed, and lists to be sorted. `batches` is 1 where no run-time lengths tell
/// them apart. What fits one of `edges` is described by it; its map is Side::kMaxSegments + its
/// index.
struct TableWork {
  Side side;
  EdgeBoxes edges;
  std::int32_t batches = 0;
  KeyFragment* table = nullptr;
  std::uint32_t* counters = nullptr;
  std::int64_t counter_count = 0;
  ListOrder order;

  static constexpr int kThreads = 256;  ///< of a block

  /// 0: nothing to do.
  std::int64_t blocks() const {
    const std::int64_t entries = std::int64_t{side.fragments()} * batches;
    const std::int64_t most = std::max(entries, counter_count);
    const std::int64_t blocks = (most + kThreads - 1) / kThreads;
    return std::min<std::int64_t>(std::max<std::int64_t>(blocks, order.planes), 1024);
  }
};

/// In a launch of its own. (pool does it beside its own work.)
void fill_fragment_table(const TableWork& work, cudaStream_t stream);

}  // namespace vidsparse::cuda
