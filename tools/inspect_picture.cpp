#include "inspect_picture.hpp"

#include <algorithm>
#include <cmath>

namespace vidsparse::tools {
namespace {

constexpr Colour kPaper{16, 18, 24};
constexpr Colour kInk{225, 228, 235};
constexpr Colour kFaint{140, 148, 165};
constexpr Colour kQuery{255, 255, 255};
constexpr int kGap = 12;
constexpr int kHead = 34;   ///< room for a line of text above panels
constexpr int kPlanes = 6;  ///< at most this many panels in a row

/// A panel's geometry: a token plane enlarged so that the picture is about 1400 pixels wide.
struct Panel {
  int width = 0;  ///< tokens
  int height = 0;
  int zoom = 1;
};

Panel panel_of(const Inspection& inspection, int panels) {
  Panel panel;
  if (inspection.frames.frames > 0) {
    panel.width = inspection.frames.width;
    panel.height = inspection.frames.height;
  } else {
    panel.width = static_cast<int>(inspection.grid.size[2] * inspection.tile.w);
    panel.height = static_cast<int>(inspection.grid.size[1] * inspection.tile.h);
  }
  panel.zoom = std::clamp(1400 / (panel.width * panels), 1, 8);
  return panel;
}

/// What a tile's pixels become: `rank` 1 is the best score, `chosen` keeps its colour.
Colour tint(Colour pixel, double rank, bool chosen, double share) {
  const auto grey = static_cast<std::uint8_t>(luma(pixel));
  if (!chosen) return mix({6, 6, 10}, {grey, grey, grey}, 0.38);
  // Spread the colours over the ranks that can be chosen at all.
  const double place = share > 0 ? std::clamp(1 - (1 - rank) / share, 0.0, 1.0) : 1.0;
  const Colour heated = heat(0.25 + 0.75 * place);
  return mix(heated, mix(heated, {grey, grey, grey}, 0.8), 0.45);
}

Image draw_panel(const Inspection& inspection, std::int64_t query, std::int64_t plane,
                 const std::vector<double>& ranks, const Panel& panel, bool all) {
  const TileGrid& grid = inspection.grid;
  const TileShape& side = inspection.tile;
  const double share = all ? 1.0
                           : static_cast<double>(count_set(
                                 inspection.mask.row(inspection.batch, inspection.head, query),
                                 inspection.mask.shape.row_words())) /
                                 static_cast<double>(grid.tiles());
  Image frame(panel.width, panel.height, {120, 120, 120});
  if (inspection.frames.frames > 0) {
    // The middle frame of the plane stands for it.
    const auto middle =
        std::min<std::int64_t>(plane * side.t + side.t / 2, inspection.frames.frames - 1);
    frame = inspection.frames.picture(static_cast<int>(middle));
  }
  Image tinted(panel.width, panel.height);
  for (int y = 0; y < panel.height; ++y) {
    for (int x = 0; x < panel.width; ++x) {
      const std::int64_t tile = grid.index(plane, y / side.h, x / side.w);
      const bool chosen =
          all || inspection.mask.test(inspection.batch, inspection.head, query, tile);
      tinted.set(
          x, y,
          tint(frame.at(x, y), ranks[static_cast<std::size_t>(tile - grid.first)], chosen, share));
    }
  }
  Image large = enlarge(tinted, panel.zoom);
  const auto [t, h, w] = grid.place(query);
  if (t == plane) {
    const int zoom = panel.zoom;
    const int x = static_cast<int>(w * side.w) * zoom;
    const int y = static_cast<int>(h * side.h) * zoom;
    const int width =
        std::min(static_cast<int>(side.w), panel.width - static_cast<int>(w * side.w));
    const int height =
        std::min(static_cast<int>(side.h), panel.height - static_cast<int>(h * side.h));
    large.outline(x - 2, y - 2, width * zoom + 4, height * zoom + 4, 2, {0, 0, 0});
    large.outline(x, y, width * zoom, height * zoom, 2, kQuery);
  }
  return large;
}

void draw_legend(Image& picture, int x, int y) {
  picture.text(x, y, "last chosen", 1, kFaint);
  const int start = x + text_width("last chosen", 1) + 8;
  for (int i = 0; i < 140; ++i)
    picture.fill(start + i, y - 2, 1, 12, heat(0.25 + 0.75 * i / 139.0));
  picture.text(start + 148, y, "best score", 1, kFaint);
}

/// Where a box of the given size has the most contrast, so that a detail shows something.
std::array<int, 2> busiest_box(const Image& image, int width, int height) {
  std::array<int, 2> best{0, 0};
  double most = -1;
  for (int y = 0; y + height <= image.height(); y += std::max(1, height / 4)) {
    for (int x = 0; x + width <= image.width(); x += std::max(1, width / 4)) {
      double sum = 0;
      double squares = 0;
      for (int dy = 0; dy < height; ++dy) {
        for (int dx = 0; dx < width; ++dx) {
          const double value = luma(image.at(x + dx, y + dy));
          sum += value;
          squares += value * value;
        }
      }
      const double spread = squares - sum * sum / (width * height);
      if (spread > most) {
        most = spread;
        best = {x, y};
      }
    }
  }
  return best;
}

}  // namespace

Image selection_picture(const Inspection& inspection) {
  const bool single = inspection.grid.size[0] == 1;
  const int panels =
      single ? 2 : static_cast<int>(std::min<std::int64_t>(inspection.grid.size[0], kPlanes));
  const Panel panel = panel_of(inspection, panels);
  const int width = panels * (panel.width * panel.zoom + kGap) + kGap;
  const int row_height = panel.height * panel.zoom + kHead;
  const int rows = static_cast<int>(inspection.query_tiles.size());
  Image picture(width, rows * row_height + kHead + kGap, kPaper);

  for (int row = 0; row < rows; ++row) {
    const std::int64_t query = inspection.query_tiles[static_cast<std::size_t>(row)];
    const std::vector<double> ranks = score_ranks(inspection, query);
    const auto place = inspection.grid.place(query);
    // Planes around the query's own, where there are more than fit.
    const std::int64_t first = std::clamp<std::int64_t>(
        place[0] - panels / 2, 0, std::max<std::int64_t>(0, inspection.grid.size[0] - panels));
    const std::int64_t chosen =
        count_set(inspection.mask.row(inspection.batch, inspection.head, query),
                  inspection.mask.shape.row_words());
    for (int column = 0; column < panels; ++column) {
      const int x = kGap + column * (panel.width * panel.zoom + kGap);
      const int y = row * row_height + kHead;
      const std::int64_t plane = single ? 0 : first + column;
      const bool all = single && column == 0;
      picture.paste(draw_panel(inspection, query, plane, ranks, panel, all), x, y);
      std::string label;
      if (all) {
        label = "query tile " + std::to_string(place[0]) + "," + std::to_string(place[1]) + "," +
                std::to_string(place[2]) + ": how every key tile scores";
      } else if (single) {
        label = std::to_string(chosen) + " of " + std::to_string(inspection.grid.tiles()) +
                " key tiles chosen";
      } else {
        label = "tiles t=" + std::to_string(plane) + (plane == place[0] ? " (query)" : "");
      }
      const int scale = text_width(label, 2) <= panel.width * panel.zoom ? 2 : 1;
      picture.text(x, y - 12 * scale + (scale == 2 ? 2 : 0), label, scale, kInk);
    }
  }
  draw_legend(picture, kGap, picture.height() - kHead + 10);
  return picture;
}

Image comparison_picture(const std::vector<NamedClip>& clips, int index) {
  const Clip& last = *clips.back().clip;
  const int count = static_cast<int>(clips.size());
  const int zoom = std::clamp(1400 / (last.width * count), 1, 8);
  const int width = last.width * zoom;
  const int height = last.height * zoom;
  // The detail: a quarter of the frame's width, four times as large.
  const int detail_width = std::max(1, last.width / 4);
  const int detail_height = std::max(1, last.height / 4);
  const auto [detail_x, detail_y] = busiest_box(last.picture(index), detail_width, detail_height);

  Image picture(count * (width + kGap) + kGap,
                kHead + height + kGap + detail_height * 4 * zoom + kGap, kPaper);
  for (int i = 0; i < count; ++i) {
    const NamedClip& named = clips[static_cast<std::size_t>(i)];
    const Image frame = named.clip->picture(index);
    const int x = kGap + i * (width + kGap);
    picture.text(x, 10, named.name, text_width(named.name, 2) <= width ? 2 : 1, kInk);
    picture.paste(enlarge(frame, zoom), x, kHead);
    picture.outline(x + detail_x * zoom, kHead + detail_y * zoom, detail_width * zoom,
                    detail_height * zoom, 1, kQuery);
    Image detail(detail_width, detail_height);
    for (int dy = 0; dy < detail_height; ++dy) {
      for (int dx = 0; dx < detail_width; ++dx) {
        detail.set(dx, dy, frame.at(detail_x + dx, detail_y + dy));
      }
    }
    picture.paste(enlarge(detail, 4 * zoom), x, kHead + height + kGap);
  }
  return picture;
}

}  // namespace vidsparse::tools
