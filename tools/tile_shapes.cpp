#include "tile_shapes.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace vidsparse::tools {
namespace {

constexpr std::int64_t kLargestTile = 384;
constexpr std::int64_t kMostStretch = 4;

/// Longest side over shortest, of the sides that do not span the grid.
double stretch(const std::array<std::int64_t, 3>& grid, const TileShape& tile) {
  const std::array<std::int64_t, 3> sides{tile.t, tile.h, tile.w};
  std::int64_t shortest = kLargestTile;
  std::int64_t longest = 1;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    longest = std::max(longest, sides[axis]);
    if (sides[axis] < grid[axis]) shortest = std::min(shortest, sides[axis]);
  }
  return static_cast<double>(longest) / static_cast<double>(std::min(shortest, longest));
}

/// The least waste, then the most cubic box, of `tokens` tokens.
std::optional<TileCost> best_of_size(const std::array<std::int64_t, 3>& grid, std::int64_t tokens) {
  std::optional<TileCost> best;
  for (std::int64_t t = 1; t <= tokens; ++t) {
    if (tokens % t != 0) continue;
    for (std::int64_t h = 1; h <= tokens / t; ++h) {
      if (tokens / t % h != 0) continue;
      const TileShape tile{t, h, tokens / t / h};
      if (stretch(grid, tile) > kMostStretch) continue;
      const TileCost cost = tile_cost(grid, tile);
      const bool better =
          !best || cost.waste < best->waste ||
          (cost.waste == best->waste && stretch(grid, tile) < stretch(grid, best->tile));
      if (better) best = cost;
    }
  }
  return best;
}

}  // namespace

TileCost tile_cost(const std::array<std::int64_t, 3>& grid, const TileShape& tile) {
  const std::array<std::int64_t, 3> sides{tile.t, tile.h, tile.w};
  TileCost cost{tile, 1, 0};
  double padding = 1;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const auto length = static_cast<double>(grid[axis]);
    const auto side = static_cast<double>(sides[axis]);
    const double count = std::ceil(length / side);
    cost.tiles *= count;
    padding *= count * side / length;
  }
  cost.waste = padding - 1;
  return cost;
}

std::vector<TileCost> better_tiles(const std::array<std::int64_t, 3>& grid, const TileCost& than) {
  // Differences below this are rounding, not tokens.
  constexpr double kSame = 1e-9;
  std::vector<TileCost> found;
  for (std::int64_t tokens = 64; tokens <= kLargestTile; tokens += 64) {
    const std::optional<TileCost> best = best_of_size(grid, tokens);
    if (best && best->waste < than.waste - kSame) found.push_back(*best);
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const TileCost& a, const TileCost& b) { return a.waste < b.waste - kSame; });
  return found;
}

}  // namespace vidsparse::tools
