#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "vidsparse/sequence.hpp"

namespace vidsparse::tools {

/// What a tile shape costs on a grid.
struct TileCost {
  TileShape tile;
  double tiles = 0;  ///< a double: candidates need no overflow check
  double waste = 0;  ///< slots of all tiles / tokens - 1
};

TileCost tile_cost(const std::array<std::int64_t, 3>& grid, const TileShape& tile);

/// Shapes that waste less than `than`, the best one of each size from 64 to 384 tokens, least waste
/// first. Only compact boxes: the longest side at most four times the shortest, because tiles that
/// stretch far along one axis pool unlike tokens. A side that spans its axis of the grid counts for
/// neither.
std::vector<TileCost> better_tiles(const std::array<std::int64_t, 3>& grid, const TileCost& than);

}  // namespace vidsparse::tools
