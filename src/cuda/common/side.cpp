#include "cuda/common/side.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "core/check.hpp"

namespace vidsparse::cuda {
namespace {

/// A tile's box, split into fragments as wide as the powers of two in its sides allow: wide ones
/// read longer runs of memory.
Box make_box(std::int32_t t, std::int32_t h, std::int32_t w) {
  Box box;
  box.tile = {t, h, w};
  const auto twos = [](std::int32_t side) {
    return std::countr_zero(static_cast<std::uint32_t>(side));
  };
  box.log_w = std::min(6, twos(w));
  box.log_h = std::min(6 - box.log_w, twos(h));
  const Triple sides = box.fragment();
  box.fragments_across = Divider(static_cast<std::uint32_t>(w / sides.w));
  box.fragments_down = Divider(static_cast<std::uint32_t>(h / sides.h));
  return box;
}

Raster make_line(std::int64_t tokens, std::int64_t slots) {
  Raster line;
  line.grid = {1, 1, static_cast<std::int32_t>(tokens)};
  line.tiles_across = Divider(static_cast<std::uint32_t>(core::ceil_div(tokens, slots)));
  line.line = 1;
  return line;
}

Raster make_video(const Video& video, const TileShape& tile) {
  Raster segment;
  segment.grid = {static_cast<std::int32_t>(video.t), static_cast<std::int32_t>(video.h),
                  static_cast<std::int32_t>(video.w)};
  segment.tiles_across = Divider(static_cast<std::uint32_t>(core::ceil_div(video.w, tile.w)));
  segment.tiles_down = Divider(static_cast<std::uint32_t>(core::ceil_div(video.h, tile.h)));
  return segment;
}

std::int64_t tokens_of(const Raster& segment) {
  return std::int64_t{segment.grid.t} * segment.grid.h * segment.grid.w;
}

bool holds_tokens(const Segment& segment) {
  if (const auto* plain = std::get_if<Plain>(&segment)) return plain->length > 0;
  const Video& video = std::get<Video>(segment);
  return video.t > 0 && video.h > 0 && video.w > 0;
}

}  // namespace

Verdict can_describe(const char* name, const TileLayout& layout) {
  const auto& segments = layout.sequence().segments();
  const auto count = std::count_if(segments.begin(), segments.end(), holds_tokens);
  if (count > Side::kMaxSegments) {
    return Verdict::no(std::string(name) + ": expected at most " +
                       std::to_string(Side::kMaxSegments) + " segments with tokens, got " +
                       std::to_string(count));
  }
  const std::int64_t slots = layout.tiles() * layout.tile_shape().tokens();
  if (slots > INT32_MAX) {
    return Verdict::no(std::string(name) + ": expected fewer than 2^31 slots, got " +
                       std::to_string(slots));
  }
  return Verdict::yes();
}

Side make_side(const TileLayout& layout) {
  const TileShape& tile = layout.tile_shape();
  const std::int64_t slots = tile.tokens();
  Side side;
  side.tiles = static_cast<std::int32_t>(layout.tiles());
  side.tokens = static_cast<std::int32_t>(layout.tokens());
  side.plain_tiles = static_cast<std::int32_t>(layout.plain_tiles());
  side.fragments_per_tile = static_cast<std::int32_t>(slots / kFragment);
  side.packed = layout.sequence().is_packed();
  side.boxes[0] = make_box(static_cast<std::int32_t>(tile.t), static_cast<std::int32_t>(tile.h),
                           static_cast<std::int32_t>(tile.w));
  side.boxes[1] = make_box(1, 1, static_cast<std::int32_t>(slots));
  if (side.packed) {
    if (side.tokens > 0) side.segments[side.segment_count++] = make_line(side.tokens, slots);
    return side;
  }
  std::int64_t token = 0;
  std::int64_t first_tile = 0;
  std::int32_t columns = 0;
  for (const Segment& part : layout.sequence().segments()) {
    const auto* plain = std::get_if<Plain>(&part);
    const std::int32_t column = columns;
    columns += plain != nullptr ? 1 : 0;
    if (!holds_tokens(part)) continue;
    Raster& segment = side.segments[side.segment_count++];
    segment = plain != nullptr ? make_line(plain->length, slots)
                               : make_video(std::get<Video>(part), tile);
    segment.first_token = static_cast<std::int32_t>(token);
    segment.first_tile = static_cast<std::int32_t>(first_tile);
    segment.column = column;
    token += tokens_of(segment);
    const std::int64_t deep = plain != nullptr ? 1 : core::ceil_div(segment.grid.t, tile.t);
    first_tile += deep * segment.tiles_down.divisor * segment.tiles_across.divisor;
  }
  return side;
}

Side with_lengths(Side side, const TensorView& lengths) {
  if (!lengths) return side;
  side.lengths = static_cast<const std::int32_t*>(lengths.data);
  side.lengths_stride = lengths.rank == 2 ? lengths.strides[0] : 0;
  return side;
}

}  // namespace vidsparse::cuda
