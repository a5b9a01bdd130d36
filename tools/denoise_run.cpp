#include "denoise_run.hpp"

namespace vidsparse::tools {

DenoiseResult denoise_clip(WindowDenoiser& denoiser, const Clip& noisy,
                           const DenoiseSettings& settings, const Progress& progress) {
  const WindowSchedule schedule(noisy.frames, settings.window, settings.overlap);
  Blender blender(schedule, noisy.height, noisy.width);
  DenoiseResult result;
  result.windows = schedule.starts.size();
  for (std::size_t i = 0; i < result.windows; ++i) {
    progress(i, result.windows);
    const Frames window = to_frames(noisy, schedule.starts[i], schedule.window);
    blender.add(
        i, denoiser.run(window, settings.sigma, settings.selection, settings.keys, result.times));
  }
  progress(result.windows, result.windows);
  result.clip = blender.clip(noisy.frames_per_second);
  return result;
}

Comparison compare_with_dense(const Clip& clean, const Clip& noisy, const DenoiseSettings& settings,
                              const PlanOptions& options) {
  WindowDenoiser denoiser(clean.frames, clean.height, clean.width, settings.tile, options);
  DenoiseSettings one = settings;
  one.window = clean.frames;
  const auto silent = [](std::size_t, std::size_t) {};

  Comparison comparison;
  comparison.clean = clean;
  comparison.noisy = quality(noisy, clean);
  const DenoiseResult sparse = denoise_clip(denoiser, noisy, one, silent);
  comparison.sparse = quality(sparse.clip, clean);
  comparison.sparse_times = sparse.times;
  // Every tile through the same op.
  one.selection = {};
  one.selection.sparsity = 0.0;
  const DenoiseResult dense = denoise_clip(denoiser, noisy, one, silent);
  comparison.dense = quality(dense.clip, clean);
  comparison.dense_times = dense.times;
  return comparison;
}

}  // namespace vidsparse::tools
