#include "quality.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace vidsparse::tools {
namespace {

/// A single channel, [height, width].
struct Plane {
  int width = 0;
  int height = 0;
  std::vector<double> values;
};

Plane luma_plane(const Clip& clip, int frame) {
  Plane plane{clip.width, clip.height, {}};
  plane.values.reserve(clip.frame_bytes() / 3);
  const std::uint8_t* pixel = clip.frame(frame);
  for (std::size_t i = 0; i < clip.frame_bytes(); i += 3) {
    plane.values.push_back(luma({pixel[i], pixel[i + 1], pixel[i + 2]}));
  }
  return plane;
}

Plane product(const Plane& a, const Plane& b) {
  Plane result = a;
  std::transform(a.values.begin(), a.values.end(), b.values.begin(), result.values.begin(),
                 std::multiplies<>());
  return result;
}

std::vector<double> gaussian(int taps) {
  constexpr double kSigma = 1.5;
  std::vector<double> weights;
  double total = 0;
  for (int i = 0; i < taps; ++i) {
    const double distance = i - (taps - 1) / 2.0;
    weights.push_back(std::exp(-distance * distance / (2 * kSigma * kSigma)));
    total += weights.back();
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

/// Along rows, result transposed: applied twice it filters both ways and restores the order. Only
/// positions where all taps fit.
Plane filter_rows(const Plane& plane, const std::vector<double>& weights) {
  const int taps = static_cast<int>(weights.size());
  Plane result{plane.height, plane.width - taps + 1, {}};
  result.values.resize(static_cast<std::size_t>(result.width) *
                       static_cast<std::size_t>(result.height));
  for (int y = 0; y < plane.height; ++y) {
    const double* row = plane.values.data() + static_cast<std::ptrdiff_t>(y) * plane.width;
    for (int x = 0; x < result.height; ++x) {
      double sum = 0;
      for (int i = 0; i < taps; ++i) sum += weights[static_cast<std::size_t>(i)] * row[x + i];
      result.values[static_cast<std::size_t>(x) * static_cast<std::size_t>(result.width) +
                    static_cast<std::size_t>(y)] = sum;
    }
  }
  return result;
}

Plane filter(const Plane& plane) {
  constexpr int kTaps = 11;
  return filter_rows(filter_rows(plane, gaussian(std::min(kTaps, plane.width))),
                     gaussian(std::min(kTaps, plane.height)));
}

double frame_ssim(const Plane& a, const Plane& b) {
  constexpr double kC1 = (0.01 * 255) * (0.01 * 255);
  constexpr double kC2 = (0.03 * 255) * (0.03 * 255);
  const Plane mean_a = filter(a);
  const Plane mean_b = filter(b);
  const Plane square_a = filter(product(a, a));
  const Plane square_b = filter(product(b, b));
  const Plane cross = filter(product(a, b));
  double sum = 0;
  for (std::size_t i = 0; i < mean_a.values.size(); ++i) {
    const double ma = mean_a.values[i];
    const double mb = mean_b.values[i];
    const double variance_a = square_a.values[i] - ma * ma;
    const double variance_b = square_b.values[i] - mb * mb;
    const double covariance = cross.values[i] - ma * mb;
    sum += (2 * ma * mb + kC1) * (2 * covariance + kC2) /
           ((ma * ma + mb * mb + kC1) * (variance_a + variance_b + kC2));
  }
  return sum / static_cast<double>(mean_a.values.size());
}

}  // namespace

double psnr(const Clip& clip, const Clip& truth) {
  double squares = 0;
  for (std::size_t i = 0; i < truth.rgb.size(); ++i) {
    const double difference = static_cast<double>(clip.rgb[i]) - static_cast<double>(truth.rgb[i]);
    squares += difference * difference;
  }
  if (squares == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(255.0 * 255.0 * static_cast<double>(truth.rgb.size()) / squares);
}

double ssim(const Clip& clip, const Clip& truth) {
  double sum = 0;
  for (int frame = 0; frame < truth.frames; ++frame) {
    sum += frame_ssim(luma_plane(clip, frame), luma_plane(truth, frame));
  }
  return sum / truth.frames;
}

Quality quality(const Clip& clip, const Clip& truth) {
  return {psnr(clip, truth), ssim(clip, truth)};
}

}  // namespace vidsparse::tools
