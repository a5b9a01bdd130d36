#pragma once

#include "cuda/common/geometry.cuh"
#include "cuda/ptx/special.cuh"

namespace vidsparse::cuda::sm80 {

/// What a block is about: a fragment of a head. Blocks go fragment by fragment, then head by head,
/// so that those that run together read the same rows of the other side.
struct Item {
  int batch;
  int head;
  int tile;
  int fragment;
  int part;  ///< of the tile

  /// The current block's. Worked out anew wherever it is needed, rather than kept in registers the
  /// inner loop lacks.
  __device__ static Item current(const Divider& per_tile) {
    const int3 block = ptx::block_index();
    const int tile = per_tile.quotient(block.x);
    return {block.z, block.y, tile, block.x, block.x - tile * static_cast<int>(per_tile.divisor)};
  }

  __device__ Fragment rows(const Side& side) const { return side.fragment(batch, tile, part); }
};

}  // namespace vidsparse::cuda::sm80
