#pragma once

#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// The threads and shared memory of a backward pass on one page. A block owns one fragment, two
/// tensors of it, and walks fragments of the other side, the same two tensors of those:
///
///   by query:  own q, dout       others k, v        -> dq
///   by key:    own k, v          others q, dout     -> dk, dv
///
/// Four warps. The scores' factors come first, the weights' second. With ColumnWarps = 1 a warp has
/// 16 own rows and keeps its weights in registers. With 2, a warp has 32 rows and half the columns
/// of the scores, so that what it reads from shared memory serves two products. By query it keeps
/// its weights too, sums over its half of the other rows alone, and two warps add their sums up at
/// the end. By key there are not registers for that: two warps exchange their weights through
/// shared memory, and each has half the columns of the sums.
///
///   own       both tensors of the block's fragment
///   stages    both tensors of the other side's; by key also the lse and delta of its rows
///   exchange  by key 64 x 64 score gradients and weights, of which pairs of warps share rows
///   list      the next fragments to walk
template <int HeadDim, bool ByKey, int ColumnWarps, int Stages, int Blocks>
struct GradientConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kByKey = ByKey;
  static constexpr int kColumnWarps = ColumnWarps;
  static constexpr int kRowTiles = ColumnWarps;  ///< of 16 rows, a warp
  static constexpr int kStages = Stages;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = Blocks;  ///< of a multiprocessor, what registers are limited for
  static constexpr int kListed = 32;

  static constexpr int kRowBytes = HeadDim * 2;
  static constexpr int kFragmentBytes = 64 * kRowBytes;
  static constexpr int kNormBytes = ByKey ? 2 * 64 * 4 : 0;
  static constexpr int kStageBytes = 2 * kFragmentBytes + kNormBytes;
  static constexpr bool kExchanges = ByKey && ColumnWarps == 2;
  static constexpr int kWeightBytes = kExchanges ? 64 * 128 : 0;
  static constexpr int kSumColumns = kExchanges ? HeadDim / 2 : HeadDim;  ///< of D, a warp
  static constexpr int kOwn = 0;
  static constexpr int kOther = kOwn + 2 * kFragmentBytes;
  static constexpr int kNorms = 2 * kFragmentBytes;  ///< of a stage
  static constexpr int kScoreGradients = kOther + Stages * kStageBytes;
  static constexpr int kWeights = kScoreGradients + kWeightBytes;
  static constexpr int kList = kWeights + kWeightBytes;
  static constexpr int kSharedBytes = kList + kListed * 16;
};

// Per block: KB of shared memory, one of them the system's, and registers of a thread. Blocks of a
// multiprocessor that 65 536 registers and the shared memory allow:
template <int HeadDim, bool ByKey, Shape kShape>
struct GradientShape;
template <>
struct GradientShape<128, true, Shape::large> {  // 82 KB, 255: 2 by both in 164 KB
  using Config = GradientConfig<128, true, 2, 1, 2>;
};
template <>
struct GradientShape<128, false, Shape::large> {  // 98 KB, 255: 2 by both in 228 KB, 1 in 164 KB
  using Config = GradientConfig<128, false, 2, 2, 2>;
};
template <bool ByKey>
struct GradientShape<64, ByKey, Shape::large> {  // 51 KB, 168: 3 by registers, 3 in 164 KB
  using Config = GradientConfig<64, ByKey, 1, 2, 3>;
};
template <bool ByKey>
struct GradientShape<128, ByKey, Shape::small> {  // 99 KB, 255: 1 in 100 KB
  using Config = GradientConfig<128, ByKey, 1, 2, 1>;
};
template <bool ByKey>
struct GradientShape<64, ByKey, Shape::small> {  // 34 KB, 197: 2 in 100 KB
  using Config = GradientConfig<64, ByKey, 1, 1, 2>;
};

}  // namespace vidsparse::cuda::sm80
