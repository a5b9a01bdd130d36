#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {

/// How far the chosen key tiles lie from their query tile, in tiles along one axis: entry d is the
/// share of all chosen tiles (query tiles that chose any weigh alike) at distance d, and the same
/// for tiles chosen blindly. The shares sum to 1; where no query tile chose any, `chosen` is 0.
struct DistanceHistogram {
  std::vector<double> chosen;
  std::vector<double> blind;
  double mean = 0;
  double blind_mean = 0;
};

/// What the lists of neighbouring query tiles have in common, relative to the length of a list;
/// means over all groups.
struct Overlap {
  std::string along;  ///< "w", "h", "t", "hw" (2x2 block), "order" (consecutive tile indices)
  int group = 0;      ///< query tiles in a group
  std::int64_t groups = 0;
  double common = 0;        ///< |intersection| / mean |list|
  double all = 0;           ///< |union| / mean |list|
  double blind_common = 0;  ///< the same for independent random lists of that length
  double blind_all = 0;
};

/// Of one (batch, head). Plain tiles of the layout are left out.
struct HeadStatistics {
  double list_length = 0;                      ///< mean chosen video tiles of a query tile
  double own_share = 0;                        ///< query tiles that chose their own tile
  std::array<DistanceHistogram, 3> distances;  ///< t, h, w
  std::vector<Overlap> overlaps;
};

/// Video tiles of a layout as a grid; the sequence must hold exactly one non-empty video.
struct TileGrid {
  std::int64_t first = 0;              ///< tile index of its first tile
  std::array<std::int64_t, 3> size{};  ///< n_T, n_H, n_W
  std::int64_t tiles() const { return size[0] * size[1] * size[2]; }
  std::int64_t index(std::int64_t t, std::int64_t h, std::int64_t w) const {
    return first + (t * size[1] + h) * size[2] + w;
  }
  std::array<std::int64_t, 3> place(std::int64_t index) const;
};
TileGrid video_tiles(const TileLayout& layout);

HeadStatistics head_statistics(const TileMaskView& mask, const TileGrid& grid, std::int64_t batch,
                               std::int64_t head);

nlohmann::ordered_json to_json(const HeadStatistics& statistics);

}  // namespace vidsparse::tools
