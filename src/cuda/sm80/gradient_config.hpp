#pragma once

#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// The threads and shared memory of a backward pass on one page. A block owns one fragment, two
/// tensors of it, and walks fragments of the other side, the same two tensors of those:
///
///   by query:  own q, dout       others k, v        -> dq
///   by key:    own k, v          others q, dout     -> dk, dv
///
/// Four warps with 16 own rows each. The scores' factors come first, the weights' second.
///
///   own      both tensors of the block's fragment
///   stages   both tensors of the other side's; by key also the lse and delta of its rows
///   list     the next fragments to walk
template <int HeadDim, bool ByKey, int Stages, int Blocks>
struct GradientConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kByKey = ByKey;
  static constexpr int kStages = Stages;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = Blocks;  ///< of a multiprocessor, what registers are limited for
  static constexpr int kListed = 64;

  static constexpr int kRowBytes = HeadDim * 2;
  static constexpr int kFragmentBytes = 64 * kRowBytes;
  static constexpr int kNormBytes = ByKey ? 2 * 64 * 4 : 0;
  static constexpr int kStageBytes = 2 * kFragmentBytes + kNormBytes;
  static constexpr int kOwn = 0;
  static constexpr int kOther = kOwn + 2 * kFragmentBytes;
  static constexpr int kNorms = 2 * kFragmentBytes;  ///< of a stage
  static constexpr int kList = kOther + Stages * kStageBytes;
  static constexpr int kSharedBytes = kList + kListed * 16;
};

// Per block: KB of shared memory, one of them the system's, and registers of a thread. Blocks of a
// multiprocessor that 65 536 registers and the shared memory allow:
template <int HeadDim, bool ByKey, Shape kShape>
struct GradientShape;
template <bool ByKey>
struct GradientShape<128, ByKey, Shape::large> {  // 99 KB, 255: 2 by both in 228 KB, 1 in 164 KB
  using Config = GradientConfig<128, ByKey, 2, 2>;
};
template <bool ByKey>
struct GradientShape<64, ByKey, Shape::large> {  // 51 KB, 168: 3 by registers, 3 in 164 KB
  using Config = GradientConfig<64, ByKey, 2, 3>;
};
template <bool ByKey>
struct GradientShape<128, ByKey, Shape::small> {  // 99 KB, 255: 1 in 100 KB
  using Config = GradientConfig<128, ByKey, 2, 1>;
};
template <bool ByKey>
struct GradientShape<64, ByKey, Shape::small> {  // 35 KB, 255: 2 in 100 KB
  using Config = GradientConfig<64, ByKey, 1, 2>;
};

}  // namespace vidsparse::cuda::sm80
