#pragma once

#include <cstdint>

#include "core/check.hpp"
#include "cuda/common/geometry.cuh"
#include "cuda/common/text_first.hpp"

namespace vidsparse::cuda::sm80 {

/// A block for each fragment of each head of a batch entry, in the order in which a launch begins
/// them, x first: all heads' text, as many rows as it fills, then a row of blocks for the others of
/// each head, so that blocks that run together read the same rows of the other side.
struct ItemBlocks {
  static constexpr std::int64_t kMaxRows = 65535;  ///< of a launch

  TextFirst turns;
  Divider text;  ///< fragments of a head's text; 1 where there is none
  std::int32_t text_rows = 0;
  std::int32_t heads = 0;

  ItemBlocks() = default;
  ItemBlocks(const TextFirst& order, std::int64_t head_count)
      : turns(order), heads(static_cast<std::int32_t>(head_count)) {
    const std::int64_t rows =
        turns.video > 0 ? core::ceil_div(turns.text() * head_count, turns.video) : 0;
    if (rows == 0 || rows + head_count > kMaxRows || rows * turns.video > INT32_MAX) {
      turns = {0, turns.fragments(), 0};
      return;
    }
    text = Divider(static_cast<std::uint32_t>(turns.text()));
    text_rows = static_cast<std::int32_t>(rows);
  }

  struct Place {
    std::int32_t head;  ///< of those left over in the last row of text: `heads` or above
    std::int32_t fragment;
  };

  /// Of block (x, y). Without a branch: it is worked out in inner loops, which lack registers.
  constexpr Place at(std::int32_t x, std::int32_t y) const {
    const bool is_text = y < text_rows;
    const auto index = static_cast<std::int32_t>(static_cast<std::uint32_t>(y) *
                                                     static_cast<std::uint32_t>(turns.video) +
                                                 static_cast<std::uint32_t>(x));
    const std::int32_t head = text.quotient(index);
    const std::int32_t turn = index - head * static_cast<std::int32_t>(text.divisor);
    const std::int32_t of_text = turns.text_fragment(turn);
    return {is_text ? head : y - text_rows, is_text ? of_text : x + turns.front};
  }

  /// Of a launch; none of any: x is 0.
  struct Grid {
    std::uint32_t x, y, z;
  };
  Grid grid(std::int64_t batch) const {
    const bool none = heads == 0 || batch == 0;
    return {none ? 0 : static_cast<std::uint32_t>(turns.video),
            static_cast<std::uint32_t>(text_rows + heads), static_cast<std::uint32_t>(batch)};
  }
};

}  // namespace vidsparse::cuda::sm80
