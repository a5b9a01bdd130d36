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
  /// inner loop lacks, and without a branch, which would take some.
  __device__ static Item current(const ItemBlocks& blocks, const Divider& per_tile) {
    const int3 block = ptx::block_index();
    const bool is_text = block.y < blocks.text_rows;
    const int index = block.y * blocks.turns.video + block.x;
    const int text_head = blocks.text.quotient(index);
    const int turn = index - text_head * static_cast<int>(blocks.text.divisor);
    const int text = turn + (turn < blocks.turns.front ? 0 : blocks.turns.video);
    const int head = is_text ? text_head : block.y - blocks.text_rows;
    const int fragment = is_text ? text : block.x + blocks.turns.front;
    const int tile = per_tile.quotient(fragment);
    return {block.z, head, tile, fragment, fragment - tile * static_cast<int>(per_tile.divisor)};
  }

  /// False for the blocks left over in the last row of text.
  __device__ static bool exists(const ItemBlocks& blocks) {
    const int3 block = ptx::block_index();
    if (block.y >= blocks.text_rows) return true;
    return blocks.text.quotient(block.y * blocks.turns.video + block.x) < blocks.heads;
  }

  __device__ Fragment rows(const Side& side) const { return side.fragment(batch, tile, part); }
};

}  // namespace vidsparse::cuda::sm80
