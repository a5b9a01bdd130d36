#include "vidsparse/tile_layout.hpp"

#include <algorithm>
#include <utility>

#include "core/check.hpp"

namespace vidsparse {
namespace {

using core::ceil_div;
using core::checked_product;
using core::checked_sum;

void check_tile(const TileShape& tile) {
  const std::string got =
      std::to_string(tile.t) + "x" + std::to_string(tile.h) + "x" + std::to_string(tile.w);
  const std::string expected = "positive sides whose product is a multiple of 64 and below 2^31";
  if (tile.t <= 0 || tile.h <= 0 || tile.w <= 0) core::refuse("tile", expected, got);
  const std::int64_t tokens =
      checked_product("tile", checked_product("tile", tile.t, tile.h), tile.w);
  if (tokens % 64 != 0 || tokens > INT32_MAX) core::refuse("tile", expected, got);
}

}  // namespace

Sequence Sequence::grid(Video video, const std::vector<std::int64_t>& prefix) {
  std::vector<Segment> segments;
  segments.reserve(prefix.size() + 1);
  for (const std::int64_t length : prefix) segments.push_back(Plain{length});
  segments.push_back(video);
  return Sequence(std::move(segments));
}

TileLayout::TileLayout(Sequence sequence, TileShape tile)
    : sequence_(std::move(sequence)), shape_(tile) {
  check_tile(tile);
  const std::int64_t slots = tile.tokens();
  if (sequence_.is_packed()) {
    const Packed& packed = sequence_.packed();
    if (packed.tiles < 0) {
      core::refuse("sequence", "a tile count >= 0", sequence_.to_string());
    }
    if (packed.slots != slots) {
      core::refuse("sequence", std::to_string(slots) + " slots a packed tile, as the tile has",
                   sequence_.to_string());
    }
    tiles_ = packed.tiles;
    tokens_ = checked_product("sequence", packed.tiles, slots);
    return;
  }
  for (const Segment& segment : sequence_.segments()) {
    Part part;
    part.first_token = tokens_;
    part.first_tile = tiles_;
    if (const auto* plain = std::get_if<Plain>(&segment)) {
      part.plain = true;
      part.plain_index = plain_segments_++;
      part.grid = {1, 1, plain->length};
      part.box = {1, 1, slots};
    } else {
      const Video& video = std::get<Video>(segment);
      part.grid = {video.t, video.h, video.w};
      part.box = {tile.t, tile.h, tile.w};
    }
    std::int64_t tokens = 1;
    part.tiles = 1;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      if (part.grid[axis] < 0) core::refuse("sequence", "sides >= 0", sequence_.to_string());
      part.tile_grid[axis] = ceil_div(part.grid[axis], part.box[axis]);
      tokens = checked_product("sequence", tokens, part.grid[axis]);
      part.tiles = checked_product("sequence", part.tiles, part.tile_grid[axis]);
    }
    // Padded slots are counted too (planner, packed buffers), so they must not overflow either.
    checked_product("sequence", part.tiles, slots);
    tokens_ = checked_sum("sequence", tokens_, tokens);
    tiles_ = checked_sum("sequence", tiles_, part.tiles);
    if (part.plain) plain_tiles_ += part.tiles;
    parts_.push_back(part);
  }
  checked_product("sequence", tiles_, slots);
}

const TileLayout::Part& TileLayout::part_of(std::int64_t index) const {
  core::check_below("tile index", index, tiles_);
  // Few segments: a scan beats a search. Empty segments hold no index.
  return *std::find_if(parts_.begin(), parts_.end(),
                       [&](const Part& part) { return index < part.first_tile + part.tiles; });
}

Tile TileLayout::tile(std::int64_t index) const {
  Tile tile;
  if (sequence_.is_packed()) {
    core::check_below("tile index", index, tiles_);
    const std::int64_t slots = shape_.tokens();
    tile.origin = {0, 0, index * slots};
    tile.extent = {1, 1, slots};
    tile.first_token = index * slots;
    return tile;
  }
  const Part& part = part_of(index);
  const std::int64_t local = index - part.first_tile;
  const std::array<std::int64_t, 3> place = {local / (part.tile_grid[1] * part.tile_grid[2]),
                                             local / part.tile_grid[2] % part.tile_grid[1],
                                             local % part.tile_grid[2]};
  tile.segment = &part - parts_.data();
  tile.plain = part.plain;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    tile.origin[axis] = place[axis] * part.box[axis];
    tile.extent[axis] = std::min(part.box[axis], part.grid[axis] - tile.origin[axis]);
  }
  tile.stride_h = part.grid[2];
  tile.stride_t = part.grid[1] * part.grid[2];
  tile.first_token = part.first_token + tile.origin[0] * tile.stride_t +
                     tile.origin[1] * tile.stride_h + tile.origin[2];
  return tile;
}

bool TileLayout::is_plain(std::int64_t index) const {
  return !sequence_.is_packed() && part_of(index).plain;
}

std::int64_t TileLayout::valid(const Tile& tile, std::int64_t index,
                               const std::int32_t* lengths) const {
  const std::int64_t capacity = tile.capacity();
  if (lengths == nullptr) return capacity;
  if (sequence_.is_packed()) return std::clamp<std::int64_t>(lengths[index], 0, capacity);
  if (!tile.plain) return capacity;
  const Part& part = parts_[static_cast<std::size_t>(tile.segment)];
  return std::clamp<std::int64_t>(lengths[part.plain_index] - tile.origin[2], 0, capacity);
}

std::int64_t TileLayout::tile_at(std::int64_t segment, std::int64_t t, std::int64_t h,
                                 std::int64_t w) const {
  core::check_below("segment", segment, static_cast<std::int64_t>(parts_.size()));
  const Part& part = parts_[static_cast<std::size_t>(segment)];
  return part.first_tile +
         ((t / part.box[0]) * part.tile_grid[1] + h / part.box[1]) * part.tile_grid[2] +
         w / part.box[2];
}

double TileLayout::padding_waste() const {
  if (sequence_.is_packed() || tokens_ == 0) return 0;
  return static_cast<double>(tiles_ * shape_.tokens()) / static_cast<double>(tokens_) - 1.0;
}

}  // namespace vidsparse
