#pragma once

#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// The attend kernel's threads and shared memory on one page. A block has one query fragment (64
/// rows) of one head; its warps have 16 * RowTiles rows each.
///
/// RowTiles = 2: two warps, each matrix read from shared memory serves two products, the query rows
/// stay in shared memory. RowTiles = 1: four warps with their query rows in registers, half the
/// accumulators a thread, but twice the reads of K and V from shared memory.
///
///   query    the block's rows, where they do not live in registers
///   keys     KeySlots fragments of K: with two, the next arrives while this one is at work
///   values   one fragment of V; before the first, query rows on their way into registers
///   list     the next key fragments to attend
template <int HeadDim, int RowTiles, int KeySlots, int Blocks>
struct AttendConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kRowTiles = RowTiles;
  static constexpr int kWarps = 4 / RowTiles;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocks = Blocks;  ///< of a multiprocessor, what registers are limited for
  static constexpr bool kQueryInRegisters = RowTiles == 1;
  static constexpr int kKeySlots = KeySlots;
  static constexpr int kListed = 32;

  static constexpr int kRowBytes = HeadDim * 2;
  static constexpr int kFragmentBytes = 64 * kRowBytes;
  static constexpr int kKeys = kQueryInRegisters ? 0 : kFragmentBytes;
  static constexpr int kValues = kKeys + KeySlots * kFragmentBytes;
  static constexpr int kQuery = kQueryInRegisters ? kValues : 0;
  static constexpr int kList = kValues + kFragmentBytes;
  static constexpr int kSharedBytes = kList + kListed * 16;
};

// Per block: KB of shared memory, one of them the system's, and registers of a thread. Blocks of a
// multiprocessor that 65 536 registers and the shared memory allow:
template <int HeadDim, Shape kShape>
struct AttendShape;
template <>
struct AttendShape<128, Shape::large> {  // 50 KB, 255: 4 by both in 228 KB, 3 in 164 KB
  using Config = AttendConfig<128, 2, 1, 4>;
};
template <>
struct AttendShape<64, Shape::large> {  // 34 KB, 255: 4 by registers, 4 in 164 KB
  using Config = AttendConfig<64, 2, 2, 4>;
};
template <>
struct AttendShape<128, Shape::small> {  // 50 KB, 211: 2 by both in 100 KB
  using Config = AttendConfig<128, 1, 2, 2>;
};
template <>
struct AttendShape<64, Shape::small> {  // 26 KB, 168: 3 by both in 100 KB
  using Config = AttendConfig<64, 1, 2, 3>;
};

}  // namespace vidsparse::cuda::sm80
