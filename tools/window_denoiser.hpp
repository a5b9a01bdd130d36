#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "buffers.hpp"
#include "features.hpp"
#include "frames.hpp"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {

/// What the selection compares.
enum class PooledKeys {
  mean_norm,  ///< the mean key with the norm of the mean
  pooled,     ///< the plain pooled tensors: the norm term is the mean of the norms
};

/// Seconds spent in each part; adds up over windows.
struct DenoiseTimes {
  double features = 0;  ///< PCA and the tensors
  double pool = 0;
  double select = 0;
  double attend = 0;
  double average = 0;  ///< overlapping patches into pixels

  double total() const { return features + pool + select + attend + average; }
  DenoiseTimes& operator+=(const DenoiseTimes& other);
};

/// 1/tau^2 with tau^2 = 0.15 * 2 * 75 * 0.9 * sigma^2, sigma on the 0..255 scale and pixels in
/// [0, 1]: 0.15 times what the noise alone puts between two patches, less the variance that the
/// PCA drops.
double denoise_scale(double sigma);

/// Non-local means on windows of one size, as attention: the plan, its tensors and its workspace,
/// made once.
class WindowDenoiser {
 public:
  WindowDenoiser(int frames, int height, int width, TileShape tile, const PlanOptions& options);

  const Plan& plan() const { return plan_; }

  /// `sigma` is the noise's standard deviation on the 0..255 scale.
  Frames run(const Frames& noisy, double sigma, const Selection& selection, PooledKeys keys,
             DenoiseTimes& times);

  // What the last run left, for looking at: its features, pooled tensors and selection.
  const TileMask& mask() const { return mask_; }
  const OwnedTensor& pooled_queries() const { return pooled_queries_; }
  const OwnedTensor& pooled_keys() const { return pooled_keys_; }
  /// Features and selection alone.
  void choose(const Frames& noisy, double sigma, const Selection& selection, PooledKeys keys,
              DenoiseTimes& times);

 private:
  void reserve(std::size_t bytes);

  Plan plan_;
  PatchBasis basis_;
  PatchTensors tensors_;
  std::vector<std::uint16_t> estimates_;
  OwnedTensor pooled_queries_;
  OwnedTensor pooled_keys_;
  TileMask always_;
  TileMask mask_;
  Buffer workspace_;
};

}  // namespace vidsparse::tools
