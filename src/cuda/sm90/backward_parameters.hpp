#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/common/tensor.cuh"
#include "cuda/sm90/tensor_map.hpp"

namespace vidsparse::cuda::sm90 {

/// The one parameter of a backward pass. "Own" is the side whose gradients it makes: the keys in
/// the pass by key, the queries in the pass by query; the other side's fragments pass by. What the
/// planner and the loaders read has the names it has in the forward (attend_parameters.hpp), where
/// the own side is always the queries: key_fragments counts the other side's, `k` and `v` are what
/// the rings of these names hold.
template <class T>
struct BackwardParameters {
  TensorMaps k;  ///< dO by key, V by query
  TensorMaps v;  ///< Q by key, K by query
  Side own;
  EdgeBoxes own_edges;                    ///< by query: own rows lie as `rows` do
  Tensor<const T> own_scores;             ///< multiplies `v`: K by key, Q by query
  Tensor<const T> own_weights;            ///< multiplies `k`: V by key, dO by query
  Tensor<T> d_scores;                     ///< dK by key, dQ by query
  Tensor<T> d_weights;                    ///< dV by key
  const float* coarse_scores = nullptr;   ///< dkc or dqc, [B, own heads, own tiles, D]; may be null
  const float* coarse_weights = nullptr;  ///< dvc
  const float* rows = nullptr;  ///< lse and delta, [B, H, query fragments, 2, 64]: backward.hpp
  float scale = 0;
  float scale_log2 = 0;    ///< scale * log2(e); by key never 0
  float norm_factor = 0;   ///< by key: -1 / scale_log2
  bool no_scores = false;  ///< by key: the scale is 0, as if own_scores were

  const std::uint32_t* mask = nullptr;  ///< row per own tile; 32-bit halves of the bitmap's words
  std::int64_t mask_row = 0;            ///< strides in such halves
  std::int64_t mask_head = 0;
  std::int64_t mask_batch = 0;

  const KeyFragment* table = nullptr;  ///< the other side's
  std::int64_t table_batch = 0;        ///< entries from one batch entry to the next
  std::int64_t table_head = 0;
  std::int32_t key_fragments = 0;
  Divider fragments_per_tile;
  bool clear_pads = false;        ///< the other side's pads may hold anything, not zeros
  std::int32_t filler_units = 1;  ///< of the other side's smallest edge box

  std::int32_t group = 1;    ///< by query: query heads that share a key head
  std::int32_t members = 1;  ///< by key: the same, walked one after the other

  // See item_plan.hpp.
  TextFirst turns;
  std::int32_t heads = 0;  ///< of the own side
  std::int32_t items_of_text = 0;
  std::int32_t items_per_head = 0;
  std::int32_t text_items = 0;
  std::int32_t items = 0;
  std::uint32_t* next = nullptr;        ///< how many items blocks have asked for
  const std::int32_t* order = nullptr;  ///< of own tiles, [B, own heads, tiles]; null: as they lie

  std::uint32_t* arrivals = nullptr;
  std::int32_t pace_fragments = 0;
  std::int32_t pace_steps = 0;
  std::int32_t pace_slack = 0;

  /// The own tile whose fragment is number `turn` of a head.
  __device__ int own_tile(int batch, int head, int turn) const {
    const int fragment = turns.fragment(turn);
    const int tile = min(static_cast<int>(fragments_per_tile.quotient(fragment)), own.tiles - 1);
    if (order == nullptr) return tile;
    return __ldg(order + (std::int64_t{batch} * heads + head) * own.tiles + tile);
  }
};

}  // namespace vidsparse::cuda::sm90
