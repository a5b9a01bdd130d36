#include "clip_options.hpp"

#include <CLI/CLI.hpp>
#include <limits>

#include "options.hpp"
#include "parse.hpp"
#include "refuse.hpp"

namespace vidsparse::tools {

void ClipOptions::add_to(CLI::App& command) {
  command.add_option("--size", size, "Frames are scaled to WIDTHxHEIGHT")->capture_default_str();
  command.add_option("--window", window, "Frames that see each other")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--tile", tile, "Tile of a multiple of 64 pixels, TxHxW")
      ->capture_default_str();
  command.add_option("--sigma", sigma, "Standard deviation of the noise, 0..255 scale")
      ->check(number_between(0.5, 255.0))
      ->capture_default_str();
  command.add_option("--seed", seed, "Seed of the noise")->capture_default_str();
  CLI::Option* share =
      command.add_option("--sparsity", sparsity, "Share of the tiles that is left out, in [0, 1)")
          ->capture_default_str();
  top_k_option_ =
      command.add_option("--top-k", top_k, "Tiles kept per query tile")->excludes(share);
  command
      .add_option("--selection", keys,
                  "mean-norm: the norm of a tile's mean; pooled: the plain pooled keys")
      ->check(CLI::IsMember({"mean-norm", "pooled"}))
      ->capture_default_str();
}

Clip ClipOptions::read(int first, int count) const { return read(first, count, size); }

Clip ClipOptions::read(int first, int count, const std::string& other_size) const {
  const auto [width, height] = parse_size("--size", other_size);
  constexpr std::int64_t kMost = 16384;
  if (width > kMost || height > kMost) {
    refuse("--size", "sides of at most " + std::to_string(kMost), other_size);
  }
  return read_video("clip", path, static_cast<int>(width), static_cast<int>(height), first, count);
}

TileShape ClipOptions::tile_shape() const {
  const auto [t, h, w] = parse_box("--tile", tile);
  return {t, h, w};
}

Selection ClipOptions::selection() const {
  Selection selection;
  if (top_k_option_->count() > 0) {
    selection.top_k = top_k;
  } else {
    selection.sparsity = sparsity;
  }
  return selection;
}

std::string ClipOptions::selection_text() const {
  if (top_k_option_->count() > 0) return "top " + std::to_string(top_k);
  char text[32];
  std::snprintf(text, sizeof text, "sparsity %g", sparsity);
  return text;
}

PooledKeys ClipOptions::pooled_keys() const {
  return keys == "pooled" ? PooledKeys::pooled : PooledKeys::mean_norm;
}

}  // namespace vidsparse::tools
