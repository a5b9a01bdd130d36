#include "selection_statistics.hpp"

#include <bit>
#include <cmath>
#include <cstdlib>

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

using Place = std::array<std::int64_t, 3>;

constexpr std::array<const char*, 3> kAxes{"t", "h", "w"};

/// A head's rows with everything but the video tiles cut away, so that counts are of video tiles.
class VideoRows {
 public:
  VideoRows(const TileMaskView& mask, const TileGrid& grid, std::int64_t batch, std::int64_t head)
      : grid_(grid), words_(mask.shape.row_words()) {
    std::vector<std::uint64_t> video(static_cast<std::size_t>(words_));
    for (std::int64_t tile = grid.first; tile < grid.first + grid.tiles(); ++tile) {
      video[static_cast<std::size_t>(tile / 64)] |= std::uint64_t{1} << (tile % 64);
    }
    bits_.reserve(static_cast<std::size_t>(grid.tiles() * words_));
    for (std::int64_t tile = 0; tile < grid.tiles(); ++tile) {
      const std::uint64_t* row = mask.row(batch, head, grid.first + tile);
      for (std::size_t word = 0; word < video.size(); ++word) {
        bits_.push_back(row[word] & video[word]);
      }
    }
  }

  std::int64_t words() const { return words_; }
  /// Of a query tile, counted from the first of the whole layout.
  const std::uint64_t* row(std::int64_t tile) const {
    return bits_.data() + (tile - grid_.first) * words_;
  }
  std::int64_t count(std::int64_t tile) const { return count_set(row(tile), words_); }

 private:
  TileGrid grid_;
  std::int64_t words_;
  std::vector<std::uint64_t> bits_;
};

DistanceHistogram distances_along(std::size_t axis, const VideoRows& rows, const TileGrid& grid) {
  const std::int64_t side = grid.size[axis];
  DistanceHistogram histogram;
  histogram.chosen.resize(static_cast<std::size_t>(side));
  histogram.blind.resize(static_cast<std::size_t>(side));
  std::int64_t choosing = 0;  // query tiles: a mask of the caller's may leave rows empty
  for (std::int64_t query = grid.first; query < grid.first + grid.tiles(); ++query) {
    const std::int64_t chosen = rows.count(query);
    if (chosen == 0) continue;
    ++choosing;
    const std::int64_t here = grid.place(query)[axis];
    const double share = 1.0 / static_cast<double>(chosen);
    for_each_set(rows.row(query), rows.words(), [&](std::int64_t key) {
      const std::int64_t distance = std::abs(grid.place(key)[axis] - here);
      histogram.chosen[static_cast<std::size_t>(distance)] += share;
    });
  }
  if (choosing > 0) {
    for (double& share : histogram.chosen) share /= static_cast<double>(choosing);
  }
  for (std::int64_t a = 0; a < side; ++a) {
    for (std::int64_t b = 0; b < side; ++b) {
      histogram.blind[static_cast<std::size_t>(std::abs(a - b))] +=
          1.0 / static_cast<double>(side * side);
    }
  }
  for (std::size_t d = 0; d < histogram.chosen.size(); ++d) {
    histogram.mean += static_cast<double>(d) * histogram.chosen[d];
    histogram.blind_mean += static_cast<double>(d) * histogram.blind[d];
  }
  return histogram;
}

/// Adds one group to the sums; `common` and `all` count tiles until finish().
void add_group(const std::vector<std::int64_t>& group, const VideoRows& rows, Overlap& overlap,
               double& length) {
  std::int64_t common = 0;
  std::int64_t all = 0;
  for (std::int64_t word = 0; word < rows.words(); ++word) {
    std::uint64_t both = ~std::uint64_t{0};
    std::uint64_t either = 0;
    for (const std::int64_t tile : group) {
      both &= rows.row(tile)[word];
      either |= rows.row(tile)[word];
    }
    common += std::popcount(both);
    all += std::popcount(either);
  }
  overlap.common += static_cast<double>(common);
  overlap.all += static_cast<double>(all);
  for (const std::int64_t tile : group) {
    length += static_cast<double>(rows.count(tile)) / static_cast<double>(group.size());
  }
  ++overlap.groups;
}

/// All groups that a box of `sides` covers when it slides over the grid.
Overlap overlap_of_boxes(const std::string& along, const Place& sides, const VideoRows& rows,
                         const TileGrid& grid, double share) {
  Overlap overlap{along, static_cast<int>(sides[0] * sides[1] * sides[2])};
  double length = 0;
  for (std::int64_t t = 0; t + sides[0] <= grid.size[0]; ++t) {
    for (std::int64_t h = 0; h + sides[1] <= grid.size[1]; ++h) {
      for (std::int64_t w = 0; w + sides[2] <= grid.size[2]; ++w) {
        std::vector<std::int64_t> group;
        for (std::int64_t i = 0; i < overlap.group; ++i) {
          group.push_back(grid.index(t + i / (sides[1] * sides[2]), h + i / sides[2] % sides[1],
                                     w + i % sides[2]));
        }
        add_group(group, rows, overlap, length);
      }
    }
  }
  if (length > 0) {
    overlap.common /= length;
    overlap.all /= length;
  }
  // Each list holds a tile with probability `share`.
  overlap.blind_common = std::pow(share, overlap.group - 1);
  overlap.blind_all = share > 0 ? (1 - std::pow(1 - share, overlap.group)) / share : 0;
  return overlap;
}

}  // namespace

std::array<std::int64_t, 3> TileGrid::place(std::int64_t index) const {
  const std::int64_t tile = index - first;
  return {tile / (size[1] * size[2]), tile / size[2] % size[1], tile % size[2]};
}

TileGrid video_tiles(const TileLayout& layout) {
  TileGrid grid;
  const auto& segments = layout.sequence().segments();
  std::int64_t before = 0;
  for (const Segment& segment : segments) {
    if (const auto* video = std::get_if<Video>(&segment)) {
      const TileShape& tile = layout.tile_shape();
      grid.first = before;
      grid.size = {(video->t + tile.t - 1) / tile.t, (video->h + tile.h - 1) / tile.h,
                   (video->w + tile.w - 1) / tile.w};
      return grid;
    }
    before += (std::get<Plain>(segment).length + layout.tile_shape().tokens() - 1) /
              layout.tile_shape().tokens();
  }
  refuse("--grid", "a video", layout.sequence().to_string());
}

HeadStatistics head_statistics(const TileMaskView& mask, const TileGrid& grid, std::int64_t batch,
                               std::int64_t head) {
  const VideoRows rows(mask, grid, batch, head);
  HeadStatistics statistics;
  for (std::int64_t tile = grid.first; tile < grid.first + grid.tiles(); ++tile) {
    statistics.list_length += static_cast<double>(rows.count(tile));
    statistics.own_share += mask.test(batch, head, tile, tile) ? 1 : 0;
  }
  const auto tiles = static_cast<double>(grid.tiles());
  statistics.list_length /= tiles;
  statistics.own_share /= tiles;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    statistics.distances[axis] = distances_along(axis, rows, grid);
  }

  const double share = statistics.list_length / tiles;
  const TileGrid in_order{grid.first, {1, 1, grid.tiles()}};
  for (std::int64_t group = 2; group <= 4; ++group) {
    const auto add = [&](const std::string& along, const Place& sides, const TileGrid& over) {
      Overlap overlap = overlap_of_boxes(along, sides, rows, over, share);
      if (overlap.groups > 0) statistics.overlaps.push_back(std::move(overlap));
    };
    add("w", {1, 1, group}, grid);
    add("h", {1, group, 1}, grid);
    add("t", {group, 1, 1}, grid);
    if (group == 4) add("hw", {1, 2, 2}, grid);
    add("order", {1, 1, group}, in_order);
  }
  return statistics;
}

nlohmann::ordered_json to_json(const HeadStatistics& statistics) {
  nlohmann::ordered_json json;
  json["list_length"] = statistics.list_length;
  json["own_tile_share"] = statistics.own_share;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const DistanceHistogram& histogram = statistics.distances[axis];
    json["distance"][kAxes[axis]] = {{"mean", histogram.mean},
                                     {"blind_mean", histogram.blind_mean},
                                     {"share", histogram.chosen},
                                     {"blind_share", histogram.blind}};
  }
  for (const Overlap& overlap : statistics.overlaps) {
    json["overlap"].push_back({{"along", overlap.along},
                               {"query_tiles", overlap.group},
                               {"groups", overlap.groups},
                               {"intersection", overlap.common},
                               {"union", overlap.all},
                               {"blind_intersection", overlap.blind_common},
                               {"blind_union", overlap.blind_all}});
  }
  return json;
}

}  // namespace vidsparse::tools
