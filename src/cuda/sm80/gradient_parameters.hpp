#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/common/tensor.cuh"
#include "cuda/sm80/blocks.hpp"
#include "cuda/sm80/head_rows.hpp"

namespace vidsparse::cuda::sm80 {

/// The one parameter of a backward pass, see gradient_config.hpp for what is own and other.
template <class T>
struct GradientParameters {
  Side own;
  Side other;
  HeadRows own_scores, own_weights;      ///< k, v or q, dout
  HeadRows other_scores, other_weights;  ///< q, dout or k, v
  Tensor<T> d_scores;                    ///< dk or dq
  Tensor<T> d_weights;                   ///< dv
  Tensor<const float> coarse_scores;     ///< dkc or dqc; null: no pooled branch
  Tensor<const float> coarse_weights;    ///< dvc
  float scale = 0;
  float scale_log2 = 0;

  /// [B, H, query fragments, 2, 64]: lse in units of log2 and delta; an infinite lse: no weight.
  const float* norms = nullptr;
  std::int32_t query_fragments = 0;

  const std::uint32_t* mask = nullptr;  ///< own tiles by other tiles, 32-bit halves of words
  std::int64_t mask_row = 0;            ///< strides in such halves
  std::int64_t mask_head = 0;
  std::int64_t mask_batch = 0;

  const KeyFragment* own_table = nullptr;
  std::int64_t own_table_head = 0;  ///< entries from one head to the next, 0: shared
  std::int64_t own_table_batch = 0;
  const KeyFragment* other_table = nullptr;
  std::int64_t other_table_head = 0;
  std::int64_t other_table_batch = 0;
  std::int32_t other_fragments = 0;

  Divider per_tile;  ///< fragments of a tile
  std::int32_t query_heads = 0;
  Divider group;  ///< query heads that share a key head

  ItemBlocks blocks;  ///< of own fragments
};

}  // namespace vidsparse::cuda::sm80
