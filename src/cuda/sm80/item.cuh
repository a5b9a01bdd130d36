#pragma once

#include "cuda/common/geometry.cuh"
#include "cuda/ptx/special.cuh"
#include "cuda/sm80/blocks.hpp"

namespace vidsparse::cuda::sm80 {

/// What a block is about: a fragment of a head.
struct Item {
  int batch;
  int head;
  int tile;
  int fragment;
  int part;  ///< of the tile

  /// The current block's. Worked out anew wherever it is needed, rather than kept in registers the
  /// inner loop lacks.
  __device__ static Item current(const ItemBlocks& blocks, const Divider& per_tile) {
    const int3 block = ptx::block_index();
    const auto [head, fragment] = blocks.at(block.x, block.y);
    const int tile = per_tile.quotient(fragment);
    return {block.z, head, tile, fragment, fragment - tile * static_cast<int>(per_tile.divisor)};
  }

  __device__ static bool exists(const ItemBlocks& blocks) {
    const int3 block = ptx::block_index();
    return blocks.at(block.x, block.y).head < blocks.heads;
  }

  __device__ Fragment rows(const Side& side) const { return side.fragment(batch, tile, part); }
};

}  // namespace vidsparse::cuda::sm80
