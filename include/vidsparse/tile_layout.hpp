#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "vidsparse/export.hpp"
#include "vidsparse/sequence.hpp"

namespace vidsparse {

/// The tokens of one tile, as a box in the raster of its segment. Plain chunks and packed tiles are
/// boxes of one row. Valid tokens in slot order are the box's tokens, w fastest, which is the
/// compacted order of the packed layout: slot ((t%a)*b' + h%b)*c' + w%c.
struct Tile {
  std::int64_t segment = 0;              ///< index into Sequence::segments(); 0 when packed
  bool plain = false;                    ///< a chunk of a Plain segment
  std::array<std::int64_t, 3> origin{};  ///< t, h, w of the first token inside its segment
  std::array<std::int64_t, 3> extent{};  ///< a', b', c': sides after clipping at the grid's edge
  std::int64_t first_token = 0;          ///< of the box, counted from the sequence's start
  std::int64_t stride_t = 0;             ///< tokens from one frame of the box to the next
  std::int64_t stride_h = 0;             ///< tokens from one row of the box to the next

  /// Tokens inside the grid: n_j, unless run-time lengths make it less.
  constexpr std::int64_t capacity() const { return extent[0] * extent[1] * extent[2]; }

  /// Calls visit(first_token, count, first_slot) for each run of consecutive tokens among the first
  /// `valid` slots.
  template <class Visit>
  void for_each_run(std::int64_t valid, Visit&& visit) const {
    std::int64_t slot = 0;
    for (std::int64_t dt = 0; dt < extent[0] && slot < valid; ++dt) {
      for (std::int64_t dh = 0; dh < extent[1] && slot < valid; ++dh) {
        const std::int64_t count = std::min(extent[2], valid - slot);
        visit(first_token + dt * stride_t + dh * stride_h, count, slot);
        slot += count;
      }
    }
  }
};

/// A Sequence cut into tiles: counts, and where the tokens of each tile lie. Tiles are numbered
/// segment by segment; inside a video tile index = ((t/a)*n_H + h/b)*n_W + w/c.
class VIDSPARSE_API TileLayout {
 public:
  /// Throws Error when a side is negative, E is not a positive multiple of 64, slots differ from E,
  /// or a count overflows.
  TileLayout(Sequence sequence, TileShape tile);

  const Sequence& sequence() const { return sequence_; }
  const TileShape& tile_shape() const { return shape_; }

  /// Rows of the tensors, pad slots of packed tiles included.
  std::int64_t tokens() const { return tokens_; }
  /// N: all tiles. N_v and P of the spec add up to it.
  std::int64_t tiles() const { return tiles_; }
  std::int64_t plain_tiles() const { return plain_tiles_; }
  std::int64_t video_tiles() const { return tiles_ - plain_tiles_; }
  /// Number of Plain segments: the columns of `Lengths` for a sequence of segments.
  std::int64_t plain_segments() const { return plain_segments_; }
  /// Columns of this side's run-time lengths: tiles when packed, else plain_segments().
  std::int64_t length_columns() const { return sequence_.is_packed() ? tiles_ : plain_segments_; }

  /// Tiles from 0 to below tiles(); others are refused.
  Tile tile(std::int64_t index) const;
  bool is_plain(std::int64_t index) const;

  /// n_j. `lengths` is one batch entry's row of `length_columns()` run-time lengths, or null;
  /// values are clamped to what the layout holds.
  std::int64_t valid(const Tile& tile, std::int64_t index, const std::int32_t* lengths) const;

  /// The video tile index that holds a token of segment `segment` at t, h, w inside its grid. A
  /// segment that the layout does not have is refused.
  std::int64_t tile_at(std::int64_t segment, std::int64_t t, std::int64_t h, std::int64_t w) const;

  /// Slots of all tiles per token, less one: what padded copies would cost; 0 when packed.
  double padding_waste() const;

 private:
  struct Part {  // one segment, resolved
    bool plain = false;
    std::int64_t first_token = 0;
    std::int64_t first_tile = 0;
    std::int64_t tiles = 0;
    std::array<std::int64_t, 3> grid{};       // T, H, W; plain: 1, 1, length
    std::array<std::int64_t, 3> tile_grid{};  // n_T, n_H, n_W
    std::array<std::int64_t, 3> box{};        // a, b, c; plain: 1, 1, E
    std::int64_t plain_index = -1;            // which Plain segment, for Lengths
  };
  const Part& part_of(std::int64_t index) const;

  Sequence sequence_;
  TileShape shape_;
  std::vector<Part> parts_;
  std::int64_t tokens_ = 0;
  std::int64_t tiles_ = 0;
  std::int64_t plain_tiles_ = 0;
  std::int64_t plain_segments_ = 0;
};

}  // namespace vidsparse
