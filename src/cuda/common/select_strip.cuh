#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/common/pooled_planes.hpp"
#include "cuda/common/split.cuh"
#include "cuda/common/tensor.cuh"
#include "cuda/ptx/warp_mma.cuh"

namespace vidsparse::cuda {

struct SelectParameters {
  Side query;
  Side key;
  PooledPlanes pooled;
  Tensor<float> oc;          ///< [B, H, Nq, D]; absent: scores and selection only
  Tensor<float> coarse_max;  ///< [B, H, Nq], optional
  Tensor<float> coarse_sum;
  std::uint32_t* mask;  ///< in 32-bit words
  const std::uint32_t* always;
  std::int64_t mask_batch, mask_head, always_batch, always_head;
  int row_words;  ///< 32-bit words of a bitmap row
  int heads;
  int group;
  int top_k;
  bool exempt;
  float scale;
  int strips;              ///< of kRows query tiles, a head
  std::int64_t items;      ///< strips of all heads and batch entries
  std::uint32_t* scratch;  ///< [blocks][kRows][pitch], where rows are not on chip
};

/// What a thread block of select has in hand: a strip of query tiles of one head. `kRowsOnChip`:
/// whether its score rows are in shared memory.
template <class BlockConfig, bool kRowsOnChip>
struct SelectStrip {
  using Config = BlockConfig;
  static constexpr bool kOnChip = kRowsOnChip;
  static constexpr int kD = Config::kD;

  const SelectParameters& p;
  typename Config::Shared& shared;
  std::uint32_t* present;     ///< key tiles that are there, 32 a word
  std::uint32_t* candidates;  ///< those the top k is chosen from
  std::uint32_t* scores;
  int pitch;  ///< of them
  int tiles;  ///< of the key side
  int warp;
  int lane;
  int batch = 0;
  int head = 0;
  int first = 0;  ///< query tile
  int rows = 0;   ///< that are there, at most kRows

  __device__ std::uint32_t* score_row(int row) const {
    return scores + static_cast<std::int64_t>(row) * pitch;
  }
  /// Rows past the last stand for it: their results go nowhere.
  __device__ const std::uint32_t* query_row(int row) const {
    const std::int64_t tile = first + min(row, rows - 1);
    return p.pooled.qc + ((std::int64_t{batch} * p.heads + head) * p.query.tiles + tile) * kD;
  }
  /// The rows of this head's keys in kc or vc; where there are none, some other row.
  __device__ const std::uint32_t* of_head(const std::uint32_t* pooled) const {
    const std::int64_t plane = std::int64_t{batch} * (p.heads / p.group) + head / p.group;
    return tiles > 0 ? pooled + plane * tiles * kD : p.pooled.qc;
  }
};

/// Number `d` of a split row.
template <int kD>
__device__ inline float number_of(const std::uint32_t* row, int d) {
  return joined(row[d / 2], row[(kD + d) / 2], d % 2 != 0);
}

/// sum += a * b of bf16 fragments, b's two words apart.
__device__ inline void multiply(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  ptx::mma_m16n8k16<__nv_bfloat16>(sum[0], sum[1], sum[2], sum[3], a, b0, b1);
}

}  // namespace vidsparse::cuda
