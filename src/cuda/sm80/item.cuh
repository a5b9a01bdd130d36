#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/ptx/special.cuh"

namespace vidsparse::cuda::sm80 {

/// How the blocks of a launch are numbered: fragment by fragment, head by head, so that those that
/// run together read the same rows of the other side.
struct ItemCounts {
  std::int32_t fragments = 0;  ///< of a head
  std::int32_t heads = 0;
  Divider per_tile;  ///< fragments of a tile
};

/// What a block is about: a fragment of a head.
struct Item {
  int batch;
  int head;
  int tile;
  int fragment;
  int part;  ///< of the tile

  /// The current block's. Worked out anew wherever it is needed, rather than kept in registers the
  /// inner loop lacks.
  __device__ static Item current(const ItemCounts& counts) {
    const int block = ptx::block_index();
    const int row = block / counts.fragments;
    const int batch = row / counts.heads;
    const int fragment = block - row * counts.fragments;
    const int tile = counts.per_tile.quotient(fragment);
    return {batch, row - batch * counts.heads, tile, fragment,
            fragment - tile * static_cast<int>(counts.per_tile.divisor)};
  }

  __device__ Fragment rows(const Side& side) const { return side.fragment(batch, tile, part); }
};

}  // namespace vidsparse::cuda::sm80
