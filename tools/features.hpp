#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "frames.hpp"
#include "vidsparse/tensor.hpp"

namespace vidsparse::tools {

inline constexpr int kPatchSide = 5;
inline constexpr int kPatchValues = kPatchSide * kPatchSide * 3;  ///< 75
inline constexpr int kFeatures = 62;                              ///< PCA dimensions
inline constexpr int kNormHigh = kFeatures;                       ///< column of -|b|^2/2, high part
inline constexpr int kNormLow = kFeatures + 1;                    ///< column of what is left of it
/// Features and norm take 64 columns, a patch 75: 96 is the smallest head_dim that holds both, and
/// one head of it costs less than two of 64 (see docs/denoise.md).
inline constexpr int kHeadDim = 96;

using Patch = Eigen::Matrix<float, kPatchValues, 1>;
using FeatureAxes = Eigen::Matrix<float, kPatchValues, kFeatures>;  ///< orthonormal columns
/// Rows are the patches of neighbouring pixels.
using PatchRows = Eigen::Matrix<float, Eigen::Dynamic, kPatchValues, Eigen::RowMajor>;

/// The patches around the pixels of row y of frame t, [width, 75]; beyond the border the frame is
/// mirrored.
void gather_patches(const Frames& frames, int t, int y, PatchRows& patches);

/// The directions in which the patches of a window differ most.
struct PatchBasis {
  Patch mean;
  FeatureAxes axes;
  Eigen::VectorXf variances;  ///< all 75, falling
};

/// PCA over all patches of the window; the result does not depend on the threads.
PatchBasis learn_basis(const Frames& frames);

/// bf16 tensors [1, tokens, 1, kHeadDim]; unused columns are zero.
///   q: a (62), 1, 1          k: b (62), high, low of -|b|^2/2          v: patch - mean (75)
/// so that q.k = a.b - |b|^2/2 = (|a|^2 - |a-b|^2)/2, whose first part the softmax cancels.
struct PatchTensors {
  std::vector<std::uint16_t> q, k, v;
};

/// -|b|^2/2 as the sum of two bf16.
struct SplitNorm {
  std::uint16_t high = 0;
  std::uint16_t low = 0;
};
SplitNorm split_norm(const std::uint16_t* features, int count);

/// Fills `tensors` (resized as needed) from the window.
void make_tensors(const Frames& frames, const PatchBasis& basis, PatchTensors& tensors);

/// Replaces the mean of the norms in pooled keys f32 [1, 1, tiles, kHeadDim] by the norm of the
/// mean, -|mean b|^2/2. The mean of the norms also holds the spread inside a tile, and so drives
/// textured tiles out of every list.
void use_norm_of_mean(const TensorRef& pooled_keys);

/// Averages the overlapping patch estimates, bf16 [tokens, kHeadDim] plus `mean`, into pixels.
/// What an estimate says of pixels outside the frame is dropped.
Frames average_patches(const std::vector<std::uint16_t>& estimates, const Patch& mean, int frames,
                       int height, int width);

}  // namespace vidsparse::tools
