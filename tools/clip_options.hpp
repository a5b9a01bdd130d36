#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "window_denoiser.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace vidsparse::tools {

/// What `denoise` and `inspect` share: how a clip is read, made noisy and selected on.
struct ClipOptions {
  std::string path;
  std::string size = "320x180";
  std::string tile = "4x4x4";
  std::string keys = "mean-norm";
  int window = 4;
  double sigma = 20;
  std::uint64_t seed = 1;
  double sparsity = 0.95;
  std::int64_t top_k = 0;

  void add_to(CLI::App& command);

  /// Frames [first, first + count) at --size, refused when sides are absurd.
  Clip read(int first, int count) const;
  Clip read(int first, int count, const std::string& other_size) const;
  TileShape tile_shape() const;
  /// --sparsity or --top-k.
  Selection selection() const;
  std::string selection_text() const;
  PooledKeys pooled_keys() const;

 private:
  CLI::Option* top_k_option_ = nullptr;
};

}  // namespace vidsparse::tools
