#include "features.hpp"

#include <tbb/parallel_for.h>
#include <tbb/parallel_reduce.h>

#include <Eigen/Eigenvalues>
#include <algorithm>

#include "core/half.hpp"

namespace vidsparse::tools {
namespace {

using core::from_bf16;
using core::to_bf16;

constexpr int kReach = kPatchSide / 2;

/// Index into [0, size) mirrored at the borders, the border pixel itself not repeated.
int mirror(int index, int size) {
  if (size == 1) return 0;
  const int period = 2 * (size - 1);
  const int place = ((index % period) + period) % period;
  return place < size ? place : period - place;
}

/// Sums over patches in double precision: fp32 would lose the small variances.
struct Moments {
  Eigen::VectorXd sum = Eigen::VectorXd::Zero(kPatchValues);
  Eigen::MatrixXd products = Eigen::MatrixXd::Zero(kPatchValues, kPatchValues);
};

}  // namespace

void gather_patches(const Frames& frames, int t, int y, PatchRows& patches) {
  patches.resize(frames.width, Eigen::NoChange);
  for (int dy = 0; dy < kPatchSide; ++dy) {
    const float* row = frames.pixel(t, mirror(y + dy - kReach, frames.height), 0);
    for (int x = 0; x < frames.width; ++x) {
      float* patch = patches.row(x).data() + dy * kPatchSide * 3;
      for (int dx = 0; dx < kPatchSide; ++dx) {
        const float* pixel = row + mirror(x + dx - kReach, frames.width) * 3;
        std::copy(pixel, pixel + 3, patch + dx * 3);
      }
    }
  }
}

PatchBasis learn_basis(const Frames& frames) {
  using Rows = tbb::blocked_range<int>;
  // The deterministic variant splits the same way whatever threads there are.
  const Moments moments = tbb::parallel_deterministic_reduce(
      Rows(0, frames.frames * frames.height, 16), Moments(),
      [&](const Rows& range, Moments part) {
        PatchRows patches;
        for (int row = range.begin(); row < range.end(); ++row) {
          gather_patches(frames, row / frames.height, row % frames.height, patches);
          // About mid-grey, so that products of one row are exact enough in fp32.
          patches.array() -= 0.5F;
          part.sum += patches.colwise().sum().transpose().cast<double>();
          const Eigen::MatrixXf products = patches.transpose() * patches;
          part.products += products.cast<double>();
        }
        return part;
      },
      [](Moments a, const Moments& b) {
        a.sum += b.sum;
        a.products += b.products;
        return a;
      });
  const double count = static_cast<double>(frames.pixels());
  const Eigen::VectorXd mean = moments.sum / count;
  const Eigen::MatrixXd covariance = moments.products / count - mean * mean.transpose();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(covariance);

  PatchBasis basis;
  basis.mean = (mean.array() + 0.5).cast<float>();
  // Eigen sorts ascending.
  basis.axes = solver.eigenvectors().rowwise().reverse().leftCols(kFeatures).cast<float>();
  basis.variances = solver.eigenvalues().reverse().cast<float>();
  return basis;
}

SplitNorm split_norm(const std::uint16_t* features, int count) {
  double norm = 0;
  for (int i = 0; i < count; ++i) {
    const double feature = from_bf16(features[i]);
    norm += feature * feature;
  }
  const double half = -norm / 2;
  SplitNorm split;
  split.high = to_bf16(static_cast<float>(half));
  split.low = to_bf16(static_cast<float>(half - double{from_bf16(split.high)}));
  return split;
}

void make_tensors(const Frames& frames, const PatchBasis& basis, PatchTensors& tensors) {
  const std::size_t elements = frames.pixels() * kHeadDim;
  for (auto* tensor : {&tensors.q, &tensors.k, &tensors.v}) tensor->resize(elements);
  const std::uint16_t one = to_bf16(1.0F);

  tbb::parallel_for(0, frames.frames * frames.height, [&](int row) {
    PatchRows patches;
    gather_patches(frames, row / frames.height, row % frames.height, patches);
    patches.rowwise() -= basis.mean.transpose();
    const Eigen::Matrix<float, Eigen::Dynamic, kFeatures, Eigen::RowMajor> features =
        patches * basis.axes;
    for (int x = 0; x < frames.width; ++x) {
      const std::size_t token =
          static_cast<std::size_t>(row) * static_cast<std::size_t>(frames.width) +
          static_cast<std::size_t>(x);
      std::uint16_t* q = tensors.q.data() + token * kHeadDim;
      std::uint16_t* k = tensors.k.data() + token * kHeadDim;
      std::uint16_t* v = tensors.v.data() + token * kHeadDim;
      const float* feature = features.row(x).data();
      const float* patch = patches.row(x).data();
      std::transform(feature, feature + kFeatures, q, [](float value) { return to_bf16(value); });
      std::copy(q, q + kFeatures, k);
      const SplitNorm norm = split_norm(k, kFeatures);
      q[kNormHigh] = q[kNormLow] = one;
      k[kNormHigh] = norm.high;
      k[kNormLow] = norm.low;
      std::transform(patch, patch + kPatchValues, v, [](float value) { return to_bf16(value); });
      std::fill(q + kNormLow + 1, q + kHeadDim, std::uint16_t{0});
      std::fill(k + kNormLow + 1, k + kHeadDim, std::uint16_t{0});
      std::fill(v + kPatchValues, v + kHeadDim, std::uint16_t{0});
    }
  });
}

void use_norm_of_mean(const TensorRef& pooled_keys) {
  float* row = static_cast<float*>(pooled_keys.data);
  for (std::int64_t tile = 0; tile < pooled_keys.shape[2]; ++tile, row += kHeadDim) {
    double norm = 0;
    for (int i = 0; i < kFeatures; ++i) norm += double{row[i]} * double{row[i]};
    row[kNormHigh] = static_cast<float>(-norm / 2);
    row[kNormLow] = 0;
  }
}

Frames average_patches(const std::vector<std::uint16_t>& estimates, const Patch& mean, int frames,
                       int height, int width) {
  Frames result(frames, height, width);
  // A pixel gathers what the up to 25 patches over it say: no two threads write the same place.
  tbb::parallel_for(0, frames * height, [&](int row) {
    const int t = row / height;
    const int y = row % height;
    for (int x = 0; x < width; ++x) {
      float* pixel = result.pixel(t, y, x);
      float count = 0;
      for (int dy = 0; dy < kPatchSide; ++dy) {
        // The patch centred at (cy, cx) sees this pixel at (dy, dx).
        const int cy = y + kReach - dy;
        if (cy < 0 || cy >= height) continue;
        for (int dx = 0; dx < kPatchSide; ++dx) {
          const int cx = x + kReach - dx;
          if (cx < 0 || cx >= width) continue;
          const std::size_t token =
              (static_cast<std::size_t>(t) * static_cast<std::size_t>(height) +
               static_cast<std::size_t>(cy)) *
                  static_cast<std::size_t>(width) +
              static_cast<std::size_t>(cx);
          const int offset = (dy * kPatchSide + dx) * 3;
          for (int c = 0; c < 3; ++c) {
            pixel[c] +=
                from_bf16(estimates[token * kHeadDim + static_cast<std::size_t>(offset + c)]) +
                mean[offset + c];
          }
          ++count;
        }
      }
      for (int c = 0; c < 3; ++c) pixel[c] /= count;
    }
  });
  return result;
}

}  // namespace vidsparse::tools
