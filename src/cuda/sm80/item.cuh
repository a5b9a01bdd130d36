#pragma once

#include "cuda/common/attend_problem.cuh"
#include "cuda/ptx/special.cuh"

namespace vidsparse::cuda::sm80 {

/// What a block is about: a query fragment of a head.
struct Item {
  int batch;
  int head;
  int tile;
  int part;  ///< of the tile

  /// Worked out anew wherever it is needed, rather than kept in registers the inner loop lacks.
  template <class T>
  __device__ static Item current(const AttendProblem<T>& p) {
    const int block = ptx::block_index();
    const int row = block / p.query_fragments;
    const int batch = row / p.heads;
    const int index = block - row * p.query_fragments;
    const int tile = p.fragments_per_tile.quotient(index);
    return {batch, row - batch * p.heads, tile, index - tile * p.query.fragments_per_tile};
  }

  template <class T>
  __device__ Fragment rows(const AttendProblem<T>& p) const {
    return p.query.fragment(batch, tile, part);
  }
};

}  // namespace vidsparse::cuda::sm80
