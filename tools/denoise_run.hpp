#pragma once

#include <optional>

#include "quality.hpp"
#include "window_denoiser.hpp"

namespace vidsparse::tools {

/// What one pass over a clip needs besides the clip.
struct DenoiseSettings {
  double sigma = 20;
  int window = 4;
  int overlap = 1;
  TileShape tile;
  Selection selection;
  PooledKeys keys = PooledKeys::mean_norm;
};

/// Reports windows done of all.
using Progress = std::function<void(std::size_t done, std::size_t all)>;

struct DenoiseResult {
  Clip clip;
  DenoiseTimes times;
  std::size_t windows = 0;
};

/// Denoises window by window; `denoiser` fits the windows of WindowSchedule(frames, window,
/// overlap).
DenoiseResult denoise_clip(WindowDenoiser& denoiser, const Clip& noisy,
                           const DenoiseSettings& settings, const Progress& progress);

/// Dense and sparse on the same window, so that they can be compared.
struct Comparison {
  Clip clean;
  Quality noisy, dense, sparse;
  DenoiseTimes dense_times, sparse_times;
};
Comparison compare_with_dense(const Clip& clean, const Clip& noisy, const DenoiseSettings& settings,
                              const PlanOptions& options);

}  // namespace vidsparse::tools
