#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "atomic_file.hpp"
#include "image.hpp"
#include "selection_statistics.hpp"
#include "video.hpp"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {

/// A selection and what it was made from, for looking at. Views are the caller's.
struct Inspection {
  std::string title;     ///< the file
  std::string subtitle;  ///< grid, tile, sparsity
  TileShape tile;
  TileGrid grid;
  TileMaskView mask;
  TensorView pooled_queries;  ///< f32 or f64 [B, H, Nq, D]
  TensorView pooled_keys;     ///< f32 or f64 [B, G, Nk, D]
  std::int64_t batch = 0;
  std::int64_t head = 0;  ///< drawn; the statistics are of all
  /// One frame per token plane of the grid, a pixel per token; absent (no frames) for tensors of
  /// unknown origin.
  Clip frames;
  std::vector<std::int64_t> query_tiles;  ///< drawn, as tile indices
};

/// Query tiles worth a look when the user names none: with frames, tiles of low, middling and high
/// contrast; without, three places on the diagonal.
std::vector<std::int64_t> interesting_tiles(const Inspection& inspection);

/// "t,h,w" in tiles, or a tile number, as a tile index; refuses `option`.
std::int64_t parse_tile(const std::string& option, const std::string& text, const TileGrid& grid);

/// For every video tile, how it ranks among all by its score with `query_tile`: 1 for the best, 0
/// for the last.
std::vector<double> score_ranks(const Inspection& inspection, std::int64_t query_tile);

/// A file to be written.
struct PageFile {
  std::string name;
  std::string bytes;
};

/// An extra picture for the page, and the text under it.
struct Exhibit {
  std::string name;  ///< of its PNG file
  std::string caption;
  Image image;
};

/// selection.png, statistics.json, index.html (self-contained) and the exhibits' PNGs.
std::vector<PageFile> make_page(const Inspection& inspection, const std::vector<Exhibit>& exhibits);

/// Refuses `folder` where something else than a folder has that name, or where it could not be
/// made or written into; for asking before long work. Makes nothing.
void check_folder(const std::string& argument, const std::filesystem::path& folder);

/// Makes the folder if needed and opens the files; they appear when the caller commits them.
std::vector<AtomicFile> stage_files(const std::string& argument,
                                    const std::filesystem::path& folder,
                                    const std::vector<PageFile>& files);

}  // namespace vidsparse::tools
