#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/common/select_shape.hpp"

namespace vidsparse::cuda {

/// How a thread block of select is laid out.
template <int kDepth, int kQueryRows, int kBlockThreads>
struct SelectConfig {
  static constexpr int kD = kDepth;
  static constexpr int kRows = kQueryRows;  ///< query tiles of a block
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kHeights = kRows / 16;
  static constexpr int kBlocks = std::max(1, 512 / kThreads);  ///< that registers leave room for
  // Over the coarse output each warp takes 32 of D columns, and of the key tiles what its split
  // has.
  static constexpr int kGroups = kDepth / 32;
  static constexpr int kSplits = kWarps / kGroups;
  static_assert(kRows % 16 == 0 && kWarps == kGroups * kSplits);
  // Steps of 32 tiles up to which a row's keys are looked at in registers: small problems, and most
  // of what shared memory holds rows of. Longer ones are read again and again.
  static constexpr int kFewSteps = kRows == 16 ? 32 : 20;
  static constexpr int kManySteps = kRows == 16 ? 64 : kRows == 32 ? 48 : 36;

  /// Words from a row to the next: 4 more than D, so that the eight rows of a matrix fall into
  /// different banks.
  static constexpr int kPitch = kDepth + 4;

  struct Shared {
    alignas(16) std::uint32_t rows[kRows][kPitch];  ///< queries, at last sums of the coarse output
    float sum[kRows];
    // Then present and candidate words [row_words] each, then score rows if they are on chip.
  };

  /// Columns of a score row: whole words of a bitmap.
  static constexpr int score_columns(int tiles) { return (tiles + 31) / 32 * 32; }
  /// Words from one to the next: 4 more, so that the rows of a matrix lie in different banks.
  static constexpr int score_pitch(int tiles) { return score_columns(tiles) + 4; }
  /// `row_words`: of a bitmap's row, 32 bits each.
  static constexpr std::size_t shared_bytes(int tiles, int row_words, bool on_chip) {
    const std::int64_t scores = on_chip ? std::int64_t{kRows} * score_pitch(tiles) : 0;
    return sizeof(Shared) +
           sizeof(std::uint32_t) * static_cast<std::size_t>(2 * std::int64_t{row_words} + scores);
  }
};

/// The block whose rows lie in workspace where no block's fit on chip.
inline constexpr SelectBlock kOffChip = {16, 256};

/// All blocks that are built for a head_dim: the last one for 128 alone.
inline std::span<const SelectBlock> select_blocks(int head_dim) {
  static constexpr std::array<SelectBlock, 6> kBlocks = {
      {{16, 256}, {32, 256}, {32, 512}, {48, 384}, {64, 384}, {16, 512}}};
  return {kBlocks.data(), head_dim == 128 ? kBlocks.size() : kBlocks.size() - 1};
}

/// Calls visit with the configuration of a block.
template <int kDepth, class Visit>
auto with_select_config(SelectBlock block, Visit&& visit) {
  if (block.rows == 64) return visit(SelectConfig<kDepth, 64, 384>{});
  if (block.rows == 48) return visit(SelectConfig<kDepth, 48, 384>{});
  if (block.rows == 32 && block.threads == 512) return visit(SelectConfig<kDepth, 32, 512>{});
  if (block.rows == 32) return visit(SelectConfig<kDepth, 32, 256>{});
  if constexpr (kDepth == 128) {
    if (block.threads == 512) return visit(SelectConfig<kDepth, 16, 512>{});
  }
  return visit(SelectConfig<kDepth, 16, 256>{});
}
template <class Visit>
auto with_select_config(int head_dim, SelectBlock block, Visit&& visit) {
  if (head_dim == 64) return with_select_config<64>(block, visit);
  return with_select_config<128>(block, visit);
}

}  // namespace vidsparse::cuda
