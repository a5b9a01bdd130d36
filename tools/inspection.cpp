#include "inspection.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <system_error>

#include "inspect_html.hpp"
#include "inspect_picture.hpp"
#include "parse.hpp"
#include "refuse.hpp"
#include "text.hpp"

namespace vidsparse::tools {
namespace {

double element(const TensorView& tensor, std::int64_t offset) {
  return tensor.dtype == DType::f64 ? static_cast<const double*>(tensor.data)[offset]
                                    : static_cast<const float*>(tensor.data)[offset];
}

/// Variance of the brightness inside a tile.
double contrast(const Inspection& inspection, std::int64_t tile) {
  const auto [pt, ph, pw] = inspection.grid.place(tile);
  const Clip& frames = inspection.frames;
  double count = 0;
  double sum = 0;
  double squares = 0;
  const auto end = [](std::int64_t place, std::int64_t side, int size) {
    return static_cast<int>(std::min<std::int64_t>((place + 1) * side, size));
  };
  const TileShape& side = inspection.tile;
  for (int t = static_cast<int>(pt * side.t); t < end(pt, side.t, frames.frames); ++t) {
    for (int y = static_cast<int>(ph * side.h); y < end(ph, side.h, frames.height); ++y) {
      for (int x = static_cast<int>(pw * side.w); x < end(pw, side.w, frames.width); ++x) {
        const std::uint8_t* pixel = frames.frame(t) + (y * frames.width + x) * 3;
        const double value = luma({pixel[0], pixel[1], pixel[2]});
        ++count;
        sum += value;
        squares += value * value;
      }
    }
  }
  return count > 0 ? squares / count - sum / count * (sum / count) : 0;
}

}  // namespace

std::vector<std::int64_t> interesting_tiles(const Inspection& inspection) {
  const TileGrid& grid = inspection.grid;
  std::vector<std::int64_t> tiles;
  const auto add = [&](std::int64_t tile) {
    if (std::find(tiles.begin(), tiles.end(), tile) == tiles.end()) tiles.push_back(tile);
  };
  if (inspection.frames.frames == 0) {
    for (const std::int64_t quarter : {1, 2, 3}) {
      add(grid.index(grid.size[0] * quarter / 4, grid.size[1] * quarter / 4,
                     grid.size[2] * quarter / 4));
    }
    return tiles;
  }
  std::vector<std::pair<double, std::int64_t>> ranked;
  for (std::int64_t tile = grid.first; tile < grid.first + grid.tiles(); ++tile) {
    ranked.emplace_back(contrast(inspection, tile), tile);
  }
  std::sort(ranked.begin(), ranked.end());
  for (const double share : {0.97, 0.6, 0.1}) {
    add(ranked[static_cast<std::size_t>(share * static_cast<double>(ranked.size() - 1))].second);
  }
  return tiles;
}

std::int64_t parse_tile(const std::string& option, const std::string& text, const TileGrid& grid) {
  const std::string expected = "t,h,w inside the " + box_text(grid.size) +
                               " tiles, or a number below " + std::to_string(grid.tiles());
  std::vector<std::int64_t> numbers;
  try {
    numbers = parse_lengths(option, text);
  } catch (const Error&) {
    numbers.clear();
  }
  if (numbers.size() == 1 && numbers[0] < grid.tiles()) return grid.first + numbers[0];
  if (numbers.size() == 3 && numbers[0] < grid.size[0] && numbers[1] < grid.size[1] &&
      numbers[2] < grid.size[2]) {
    return grid.index(numbers[0], numbers[1], numbers[2]);
  }
  refuse(option, expected, "\"" + printable(text) + "\"");
}

std::vector<double> score_ranks(const Inspection& inspection, std::int64_t query_tile) {
  const TensorView& queries = inspection.pooled_queries;
  const TensorView& keys = inspection.pooled_keys;
  // Query heads share key heads in runs.
  const std::int64_t key_head = inspection.head / (queries.shape[1] / keys.shape[1]);
  const std::int64_t query = queries.offset(inspection.batch, inspection.head, query_tile);
  const std::int64_t tiles = inspection.grid.tiles();
  std::vector<double> scores(static_cast<std::size_t>(tiles));
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t key = keys.offset(inspection.batch, key_head, inspection.grid.first + tile);
    double score = 0;
    for (std::int64_t i = 0; i < queries.shape[3]; ++i) {
      score += element(queries, query + i) * element(keys, key + i);
    }
    // NaN orders below everything, as in the selection.
    scores[static_cast<std::size_t>(tile)] =
        score == score ? score : -std::numeric_limits<double>::infinity();
  }
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  std::vector<double> ranks(scores.size(), 1);
  for (std::size_t i = 0; i < order.size(); ++i) {
    ranks[order[i]] =
        1 - static_cast<double>(i) / static_cast<double>(std::max<std::int64_t>(1, tiles - 1));
  }
  return ranks;
}

std::vector<PageFile> make_page(const Inspection& inspection,
                                const std::vector<Exhibit>& exhibits) {
  std::vector<HeadStatistics> heads;
  nlohmann::ordered_json json;
  json["title"] = inspection.title;
  json["problem"] = inspection.subtitle;
  json["tiles"] = inspection.grid.size;
  for (std::int64_t batch = 0; batch < inspection.mask.shape.batch; ++batch) {
    for (std::int64_t head = 0; head < inspection.mask.shape.heads; ++head) {
      heads.push_back(head_statistics(inspection.mask, inspection.grid, batch, head));
      nlohmann::ordered_json entry = to_json(heads.back());
      entry["batch"] = batch;
      entry["head"] = head;
      json["heads"].push_back(std::move(entry));
    }
  }

  std::vector<PageFile> files;
  std::vector<HtmlPicture> pictures;
  for (const Exhibit& exhibit : exhibits) {
    files.push_back({exhibit.name, encode_png(exhibit.image)});
    pictures.push_back({exhibit.caption, files.back().bytes});
  }
  files.push_back({"selection.png", encode_png(selection_picture(inspection))});
  pictures.push_back(
      {"Each row is one query tile (white frame). Colour tells how a key tile ranks by its pooled "
       "score, pale yellow first; what stays dark was not chosen.",
       files.back().bytes});
  files.push_back({"statistics.json", json_text(json) + "\n"});
  files.push_back({"index.html", html_page(inspection, heads, pictures)});
  return files;
}

void check_folder(const std::string& argument, const std::filesystem::path& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(folder, ignored) && !std::filesystem::is_directory(folder, ignored)) {
    refuse(argument, "a folder", "\"" + printable(folder.string()) + "\", which is a file");
  }
  // Where it is not there yet, the files would stand in the nearest folder that is.
  std::filesystem::path there = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(there, ignored) && there.has_relative_path()) {
    there = there.parent_path();
  }
  check_writable(argument, there / ".vidsparse");
}

std::vector<AtomicFile> stage_files(const std::string& argument,
                                    const std::filesystem::path& folder,
                                    const std::vector<PageFile>& files) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    refuse(argument,
           "\"" + printable(folder.string()) + "\" cannot be created: " + error.message());
  }
  std::vector<AtomicFile> staged;
  for (const PageFile& file : files) {
    staged.emplace_back(argument, folder / file.name);
    staged.back().write(file.bytes);
  }
  return staged;
}

}  // namespace vidsparse::tools
