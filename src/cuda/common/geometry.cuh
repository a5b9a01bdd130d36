#pragma once

#include <cstdint>

#include "cuda/common/text_first.hpp"

// Where tiles and their fragments lie, as kernels see it: plain numbers passed by value as a kernel
// parameter. Everything is constexpr, so the same code runs on the host (g++) and on the device
// (nvcc --expt-relaxed-constexpr). Token and tile indices fit 31 bits; offsets in memory do not, so
// widen before multiplying by a stride.
//
// A tile of 64n tokens is n fragments, boxes of 64 slots with power-of-two sides; slot s of a
// fragment is (dt * sides.h + dh) * sides.w + dw. Its valid slots are always a smaller box at its
// origin: a video's clipped at the grid's edge, a line's (Plain chunk, packed tile) cut short.

namespace vidsparse::cuda {

inline constexpr std::int32_t kFragment = 64;  ///< slots of a fragment

/// Exact quotients n / divisor for 0 <= n < 2^31 by one multiplication and a shift.
struct Divider {
  std::uint32_t divisor = 1;
  std::uint32_t magic = 1U << 31;
  std::uint32_t shift = 31;

  constexpr Divider() = default;
  explicit constexpr Divider(std::uint32_t by) : divisor(by) {
    // magic = ceil(2^shift / by) with by <= 2^(shift - 31): the excess stays below 1 / by.
    while ((std::uint64_t{1} << (shift - 31)) < by) ++shift;
    magic = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + by - 1) / by);
  }
  constexpr std::int32_t quotient(std::int32_t n) const {
    return static_cast<std::int32_t>((static_cast<std::uint64_t>(n) * magic) >> shift);
  }
};

/// Three counts or coordinates along time, height and width.
struct Triple {
  std::int32_t t = 0;
  std::int32_t h = 0;
  std::int32_t w = 0;
};

/// How tiles split into fragments; all videos of a problem share one Box, all lines another.
struct Box {
  Triple tile;               ///< a, b, c; of a line 1, 1, E
  std::int32_t log_h = 0;    ///< log2 of a fragment's height
  std::int32_t log_w = 6;    ///< log2 of its width; the depth makes it 64 slots
  Divider fragments_across;  ///< fragments of a tile along w
  Divider fragments_down;    ///< and along h

  constexpr Triple fragment() const { return {1 << (6 - log_h - log_w), 1 << log_h, 1 << log_w}; }
};

/// A run of tokens in raster order. Packed tiles are one line of tiles * E tokens.
struct Raster {
  std::int32_t first_token = 0;
  std::int32_t first_tile = 0;
  Triple grid;              ///< T, H, W; of a line 1, 1, tokens
  Divider tiles_across;     ///< n_W
  Divider tiles_down;       ///< n_H
  std::int32_t line = 0;    ///< 0: a video, 1: a line
  std::int32_t column = 0;  ///< of a Plain segment: where its run-time length is
};

/// One fragment of one tile.
struct Fragment {
  std::int32_t segment = 0;      ///< index into Side::segments
  Triple origin;                 ///< of slot 0 in the segment's grid; may lie outside when empty
  Triple extent;                 ///< valid slots along each axis; all 0 when there is none
  std::int32_t first_token = 0;  ///< of slot 0, from the sequence's start
  std::int32_t stride_t = 0;     ///< tokens from one frame to the next
  std::int32_t stride_h = 0;     ///< tokens from one row to the next
  std::int32_t log_h = 0;
  std::int32_t log_w = 6;

  /// Valid slots.
  constexpr std::int32_t count() const { return extent.t * extent.h * extent.w; }

  /// The token of a slot, -1 if it holds none.
  constexpr std::int32_t token(std::int32_t slot) const {
    const std::int32_t dw = slot & ((1 << log_w) - 1);
    const std::int32_t dh = (slot >> log_w) & ((1 << log_h) - 1);
    const std::int32_t dt = slot >> (log_w + log_h);
    if (dw >= extent.w || dh >= extent.h || dt >= extent.t) return -1;
    return first_token + dt * stride_t + dh * stride_h + dw;
  }

  /// Bit s: slot s is valid.
  constexpr std::uint64_t valid_slots() const {
    const std::uint64_t columns = repeated(low_bits(extent.w), 1 << log_w);
    const std::uint64_t rows = repeated(low_bits(extent.h << log_w), 1 << (log_w + log_h));
    return columns & rows & low_bits(extent.t << (log_w + log_h));
  }

 private:
  static constexpr std::uint64_t low_bits(std::int32_t count) {
    return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  }
  static constexpr std::uint64_t repeated(std::uint64_t bits, std::int32_t width) {
    for (; width < 64; width *= 2) bits |= bits << width;
    return bits;
  }
};

/// The tiles of the query or of the key side of a problem.
struct Side {
  static constexpr std::int32_t kMaxSegments = 8;

  std::int32_t tiles = 0;
  std::int32_t tokens = 0;              ///< pad slots of packed tiles included
  std::int32_t plain_tiles = 0;         ///< P
  std::int32_t fragments_per_tile = 1;  ///< n
  std::int32_t segment_count = 0;       ///< segments without tokens are left out
  bool packed = false;
  Raster segments[kMaxSegments];
  Box boxes[2];  ///< of videos, of lines
  /// Run-time lengths [batch, columns] on the device, null where everything is valid: n_j of each
  /// packed tile or the length of each Plain segment. Clamped where they are read.
  const std::int32_t* lengths = nullptr;
  std::int64_t lengths_stride = 0;  ///< from one batch entry to the next; 0: shared

  /// Of all tiles.
  constexpr std::int32_t fragments() const { return tiles * fragments_per_tile; }

  constexpr std::int32_t segment_of(std::int32_t tile) const {
    std::int32_t s = 0;
    while (s + 1 < segment_count && tile >= segments[s + 1].first_tile) ++s;
    return s;
  }

  /// Plain segments around the videos are text; packed tiles and Plain segments alone are not.
  constexpr TextFirst text_first() const {
    std::int32_t first = 0;
    std::int32_t last = segment_count - 1;
    while (first <= last && segments[first].line == 1) ++first;
    if (packed || first > last) return {0, fragments(), 0};
    while (segments[last].line == 1) --last;
    const std::int32_t begin = segments[first].first_tile;
    const std::int32_t end = last + 1 < segment_count ? segments[last + 1].first_tile : tiles;
    return {begin * fragments_per_tile, (end - begin) * fragments_per_tile,
            (tiles - end) * fragments_per_tile};
  }

  /// A chunk of a Plain segment (a packed tile is none).
  constexpr bool is_plain(std::int32_t tile) const {
    return !packed && segments[segment_of(tile)].line == 1;
  }

  /// Fragment f of a tile, 0 <= f < fragments_per_tile.
  constexpr Fragment fragment(std::int32_t batch, std::int32_t tile, std::int32_t f) const {
    Fragment result;
    result.segment = segment_of(tile);
    const Raster& segment = segments[result.segment];
    const Box& box = boxes[segment.line];
    const Triple sides = box.fragment();
    const Triple at = corner(segment, box, tile);
    const std::int32_t row = box.fragments_across.quotient(f);
    const std::int32_t frame = box.fragments_down.quotient(row);
    result.log_h = box.log_h;
    result.log_w = box.log_w;
    result.origin.t = at.t + frame * sides.t;
    result.origin.h =
        at.h + (row - frame * static_cast<std::int32_t>(box.fragments_down.divisor)) * sides.h;
    result.origin.w =
        at.w + (f - row * static_cast<std::int32_t>(box.fragments_across.divisor)) * sides.w;
    result.stride_h = segment.grid.w;
    result.stride_t = segment.grid.w * segment.grid.h;
    result.first_token = segment.first_token + result.origin.t * result.stride_t +
                         result.origin.h * result.stride_h + result.origin.w;
    const std::int32_t end =
        segment.line == 1 ? at.w + line_length(segment, batch, tile, at.w) : segment.grid.w;
    const Triple room = {within(segment.grid.t - result.origin.t, sides.t),
                         within(segment.grid.h - result.origin.h, sides.h),
                         within(end - result.origin.w, sides.w)};
    if (room.t > 0 && room.h > 0 && room.w > 0) result.extent = room;
    return result;
  }

  /// The token of a slot that holds none but lies in memory: pads of packed tiles, and tokens past
  /// a Plain segment's run-time length. -1 otherwise.
  constexpr std::int32_t pad_token(const Fragment& rows, std::int32_t slot) const {
    const Raster& segment = segments[rows.segment];
    const bool line = segment_count > 0 && segment.line == 1;
    return line && rows.origin.w + slot < segment.grid.w ? rows.first_token + slot : -1;
  }

  /// n_j: the valid tokens of a tile.
  constexpr std::int32_t valid_tokens(std::int32_t batch, std::int32_t tile) const {
    const Raster& segment = segments[segment_of(tile)];
    const Box& box = boxes[segment.line];
    const Triple at = corner(segment, box, tile);
    if (segment.line == 1) return line_length(segment, batch, tile, at.w);
    return within(segment.grid.t - at.t, box.tile.t) * within(segment.grid.h - at.h, box.tile.h) *
           within(segment.grid.w - at.w, box.tile.w);
  }

 private:
  static constexpr std::int32_t within(std::int32_t value, std::int32_t most) {
    return value < 0 ? 0 : value > most ? most : value;
  }

  /// The first token of a tile in its segment's grid.
  static constexpr Triple corner(const Raster& segment, const Box& box, std::int32_t tile) {
    const std::int32_t local = tile - segment.first_tile;
    const std::int32_t row = segment.tiles_across.quotient(local);
    const std::int32_t frame = segment.tiles_down.quotient(row);
    return {frame * box.tile.t,
            (row - frame * static_cast<std::int32_t>(segment.tiles_down.divisor)) * box.tile.h,
            (local - row * static_cast<std::int32_t>(segment.tiles_across.divisor)) * box.tile.w};
  }

  /// Valid tokens of a line's tile that starts at token `at` of its segment.
  constexpr std::int32_t line_length(const Raster& segment, std::int32_t batch, std::int32_t tile,
                                     std::int32_t at) const {
    const std::int32_t slots = boxes[1].tile.w;
    const std::int32_t room = within(segment.grid.w - at, slots);
    if (lengths == nullptr) return room;
    const std::int32_t* row = lengths + batch * lengths_stride;
    if (packed) return within(row[tile], room);
    // Clamped first: a length far below zero must not overflow.
    return within(within(row[segment.column], segment.grid.w) - at, room);
  }
};

}  // namespace vidsparse::cuda
