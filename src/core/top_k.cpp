#include <algorithm>
#include <cmath>
#include <string>

#include "core/backend.hpp"
#include "core/check.hpp"

namespace vidsparse {

std::int64_t top_k_of(double sparsity, std::int64_t tiles) {
  if (!(sparsity >= 0.0 && sparsity < 1.0)) {
    core::refuse("sparsity", "a number in [0, 1)", std::to_string(sparsity));
  }
  if (tiles <= 0) return 0;
  // As the reference implementation computes it: double precision, no guard against rounding.
  const double kept = std::ceil((1.0 - sparsity) * static_cast<double>(tiles));
  // Near 2^63 tiles the double may be one that no integer holds.
  if (kept >= static_cast<double>(tiles)) return tiles;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(kept));
}

std::int64_t core::resolve_top_k(const Selection& selection, const TileLayout& key) {
  const std::int64_t tiles = key.video_tiles();
  if (selection.sparsity.has_value() == selection.top_k.has_value()) {
    refuse("sparsity", "exactly one of sparsity and top_k",
           selection.sparsity ? "both" : "neither");
  }
  if (selection.sparsity) return top_k_of(*selection.sparsity, tiles);
  const std::int64_t top_k = *selection.top_k;
  if (top_k < std::min<std::int64_t>(1, tiles) || top_k > tiles) {
    refuse("top_k", "1 to " + std::to_string(tiles) + ", the number of video key tiles",
           std::to_string(top_k));
  }
  return top_k;
}

}  // namespace vidsparse
