#include <algorithm>

#include "core/check.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse {

TileMask always_own_tile(const TileLayout& query, const TileLayout& key) {
  if (query.sequence() != key.sequence()) {
    core::refuse("key", "the query's sequence " + query.sequence().to_string(),
                 key.sequence().to_string());
  }
  TileMask mask({1, 1, query.tiles(), key.tiles()});
  for (std::int64_t i = 0; i < query.tiles(); ++i) mask.set_all(i, i);
  return mask;
}

TileMask always_first_frame(const TileLayout& query, const TileLayout& key) {
  TileMask mask({1, 1, query.tiles(), key.tiles()});
  if (key.sequence().is_packed()) {
    core::refuse("key", "a sequence with video segments", key.sequence().to_string());
  }
  for (std::int64_t j = 0; j < key.tiles(); ++j) {
    const Tile tile = key.tile(j);
    if (tile.plain || tile.origin[0] != 0) continue;
    for (std::int64_t i = 0; i < query.tiles(); ++i) mask.set_all(i, j);
  }
  return mask;
}

TileMask always_window(const TileLayout& query, const TileLayout& key, std::int64_t dt,
                       std::int64_t dh, std::int64_t dw) {
  if (dt < 0 || dh < 0 || dw < 0) {
    core::refuse("window", "distances >= 0",
                 std::to_string(dt) + ", " + std::to_string(dh) + ", " + std::to_string(dw));
  }
  if (query.sequence().is_packed() || query.sequence() != key.sequence()) {
    core::refuse("key", "the query's sequence, with video segments", key.sequence().to_string());
  }
  const TileShape& box = query.tile_shape();
  const std::array<std::int64_t, 3> sides = {box.t, box.h, box.w};
  const std::array<std::int64_t, 3> reach = {dt, dh, dw};
  TileMask mask({1, 1, query.tiles(), key.tiles()});
  for (std::int64_t i = 0; i < query.tiles(); ++i) {
    const Tile at = query.tile(i);
    if (at.plain) continue;
    for (std::int64_t j = 0; j < key.tiles(); ++j) {
      const Tile to = key.tile(j);
      bool near = to.segment == at.segment;
      for (std::size_t axis = 0; axis < 3; ++axis) {
        const std::int64_t away = std::abs(to.origin[axis] - at.origin[axis]) / sides[axis];
        near = near && away <= reach[axis];
      }
      if (near) mask.set_all(i, j);
    }
  }
  return mask;
}

}  // namespace vidsparse
