// The parts of `vidsparse denoise`: patches, features, windows, noise.

#include <gtest/gtest.h>

#include <Eigen/Eigenvalues>
#include <cmath>
#include <random>

#include "core/half.hpp"
#include "features.hpp"
#include "frames.hpp"

namespace vidsparse::tools {
namespace {

using core::from_bf16;
using core::to_bf16;

class ToolsDenoise : public ::testing::Test {
 protected:
  ToolsDenoise() : seed_(std::random_device{}()), random_(seed_) {
    std::printf("seed %u\n", seed_);
  }

  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random_);
  }
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  Frames random_frames(int t, int h, int w) {
    Frames frames(t, h, w);
    for (float& value : frames.rgb) value = uniform(0, 1);
    return frames;
  }

  unsigned seed_;
  std::mt19937 random_;
};

TEST_F(ToolsDenoise, PatchesShowTheirNeighbourhood) {
  const Frames frames = random_frames(2, 7, 9);
  PatchRows patches;
  gather_patches(frames, 1, 3, patches);
  for (int x = 2; x < 7; ++x) {
    for (int dy = 0; dy < 5; ++dy) {
      for (int dx = 0; dx < 5; ++dx) {
        for (int c = 0; c < 3; ++c) {
          EXPECT_EQ(patches(x, (dy * 5 + dx) * 3 + c), frames.pixel(1, 3 + dy - 2, x + dx - 2)[c]);
        }
      }
    }
  }
  // Mirrored at the left border: column -2 is column 2.
  EXPECT_EQ(patches(0, 0), frames.pixel(1, 1, 2)[0]);
}

TEST_F(ToolsDenoise, FramesSmallerThanAPatchWork) {
  for (const auto& [h, w] : {std::pair{1, 1}, {1, 7}, {2, 3}}) {
    const Frames frames = random_frames(1, h, w);
    const PatchBasis basis = learn_basis(frames);
    PatchTensors tensors;
    make_tensors(frames, basis, tensors);
    const Frames same = average_patches(tensors.v, basis.mean, 1, h, w);
    for (std::size_t i = 0; i < frames.rgb.size(); ++i) {
      EXPECT_NEAR(same.rgb[i], frames.rgb[i], 0.004);
    }
  }
}

TEST_F(ToolsDenoise, PcaAgreesWithADirectOne) {
  const Frames frames = random_frames(2, 21, 17);
  const PatchBasis basis = learn_basis(frames);

  Eigen::MatrixXd all(frames.pixels(), kPatchValues);
  PatchRows patches;
  for (int row = 0; row < 2 * 21; ++row) {
    gather_patches(frames, row / 21, row % 21, patches);
    all.middleRows(row * 17, 17) = patches.cast<double>();
  }
  const Eigen::RowVectorXd mean = all.colwise().mean();
  const Eigen::MatrixXd centred = all.rowwise() - mean;
  const Eigen::MatrixXd covariance =
      centred.transpose() * centred / static_cast<double>(frames.pixels());
  EXPECT_LT((basis.mean.cast<double>().transpose() - mean).cwiseAbs().maxCoeff(), 1e-5);

  const Eigen::MatrixXd axes = basis.axes.cast<double>();
  const Eigen::MatrixXd gram = axes.transpose() * axes;
  EXPECT_LT((gram - Eigen::MatrixXd::Identity(kFeatures, kFeatures)).cwiseAbs().maxCoeff(), 1e-5);
  // Each axis is an eigenvector: C a = variance a; and the variances fall.
  const double scale = covariance.norm();
  for (int i = 0; i < kFeatures; ++i) {
    const Eigen::VectorXd axis = axes.col(i);
    EXPECT_LT((covariance * axis - basis.variances[i] * axis).norm(), 1e-5 * scale);
    if (i > 0) {
      EXPECT_LE(basis.variances[i], basis.variances[i - 1]);
    }
  }
  EXPECT_NEAR(basis.variances.sum(), covariance.trace(), 1e-4 * covariance.trace());
}

TEST_F(ToolsDenoise, NormSplitsIntoTwoBf16) {
  for (int trial = 0; trial < 200; ++trial) {
    std::uint16_t features[kFeatures];
    double half = 0;
    const float size = std::exp(uniform(-3, 2));
    for (std::uint16_t& feature : features) {
      feature = to_bf16(uniform(-size, size));
      half -= 0.5 * double{from_bf16(feature)} * double{from_bf16(feature)};
    }
    const SplitNorm split = split_norm(features, kFeatures);
    const double sum = double{from_bf16(split.high)} + double{from_bf16(split.low)};
    // Two roundings to 8 bits: 2^-9 of 2^-9 of the value.
    EXPECT_LE(std::abs(sum - half), std::abs(half) * std::ldexp(1.0, -17));
  }
  // What fits 16 bits is exact.
  const std::uint16_t simple[2] = {to_bf16(1.0F), to_bf16(0.0625F)};
  const SplitNorm split = split_norm(simple, 2);
  EXPECT_EQ(from_bf16(split.high) + from_bf16(split.low), -0.5F - 0.001953125F);
}

TEST_F(ToolsDenoise, Bf16RoundsToNearestEven) {
  for (int trial = 0; trial < 1000; ++trial) {
    const float value = uniform(-10, 10);
    EXPECT_LE(std::abs(from_bf16(to_bf16(value)) - value), std::abs(value) / 256);
  }
  EXPECT_EQ(from_bf16(to_bf16(1 + 1.0F / 256)), 1.0F);
  EXPECT_EQ(from_bf16(to_bf16(1 + 3.0F / 256)), 1 + 4.0F / 256);
}

TEST_F(ToolsDenoise, ProductOfTensorsIsTheDistance) {
  const Frames frames = random_frames(1, 12, 13);
  PatchTensors tensors;
  make_tensors(frames, learn_basis(frames), tensors);
  for (int trial = 0; trial < 100; ++trial) {
    const std::uint16_t* q =
        tensors.q.data() + static_cast<std::size_t>(pick(0, 12 * 13 - 1)) * kHeadDim;
    const std::uint16_t* k =
        tensors.k.data() + static_cast<std::size_t>(pick(0, 12 * 13 - 1)) * kHeadDim;
    double product = 0;
    double distance = 0;
    double norm = 0;
    for (int i = 0; i < kHeadDim; ++i) product += double{from_bf16(q[i])} * from_bf16(k[i]);
    for (int i = 0; i < kFeatures; ++i) {
      distance += std::pow(double{from_bf16(q[i])} - from_bf16(k[i]), 2);
      norm += std::pow(double{from_bf16(q[i])}, 2);
    }
    EXPECT_NEAR(product, (norm - distance) / 2, 1e-3);
  }
}

TEST_F(ToolsDenoise, NormOfTheMeanReplacesTheMeanOfTheNorms) {
  const std::int64_t tiles = 3;
  std::vector<float> pooled(static_cast<std::size_t>(tiles) * kHeadDim);
  for (float& value : pooled) value = uniform(-1, 1);
  const std::vector<float> before = pooled;
  use_norm_of_mean(TensorRef::dense(pooled.data(), DType::f32, 4, {1, 1, tiles, kHeadDim}));
  for (std::size_t tile = 0; tile < 3; ++tile) {
    const float* row = pooled.data() + tile * kHeadDim;
    double norm = 0;
    for (int i = 0; i < kFeatures; ++i) {
      EXPECT_EQ(row[i], before[tile * kHeadDim + static_cast<std::size_t>(i)]);
      norm += double{row[i]} * row[i];
    }
    EXPECT_NEAR(row[kNormHigh] + row[kNormLow], -norm / 2, 1e-5);
  }
}

TEST_F(ToolsDenoise, UntouchedPatchesAverageToTheFrame) {
  const Frames frames = random_frames(3, 10, 11);
  const PatchBasis basis = learn_basis(frames);
  PatchTensors tensors;
  make_tensors(frames, basis, tensors);
  const Frames same = average_patches(tensors.v, basis.mean, 3, 10, 11);
  for (std::size_t i = 0; i < frames.rgb.size(); ++i) {
    EXPECT_NEAR(same.rgb[i], frames.rgb[i], 0.004);
  }
}

TEST_F(ToolsDenoise, WindowsCoverTheClipAndTheirWeightsSumToOne) {
  for (int trial = 0; trial < 100; ++trial) {
    const int frames = pick(1, 40);
    const int window = pick(1, 12);
    const int overlap = pick(0, window - 1);
    const WindowSchedule schedule(frames, window, overlap);
    std::vector<double> sums(static_cast<std::size_t>(frames));
    for (std::size_t i = 0; i < schedule.starts.size(); ++i) {
      for (int offset = 0; offset < schedule.window; ++offset) {
        const double weight = schedule.weight(i, offset);
        EXPECT_GT(weight, 0);
        sums[static_cast<std::size_t>(schedule.starts[i] + offset)] += weight;
      }
      if (i > 0) {
        EXPECT_LE(schedule.starts[i], schedule.starts[i - 1] + schedule.window - overlap);
      }
    }
    for (const double sum : sums) EXPECT_NEAR(sum, 1, 1e-12);
  }
  // The default of the command: 16 frames, windows of 4 that share one.
  EXPECT_EQ(WindowSchedule(16, 4, 1).starts, (std::vector<int>{0, 3, 6, 9, 12}));
}

TEST_F(ToolsDenoise, BlendingEqualWindowsGivesTheClip) {
  Clip clip{7, 5, 6, 24, {}};
  for (int i = 0; i < 7 * 5 * 6 * 3; ++i)
    clip.rgb.push_back(static_cast<std::uint8_t>(pick(0, 255)));
  const WindowSchedule schedule(7, 4, 2);
  Blender blender(schedule, 5, 6);
  for (std::size_t i = 0; i < schedule.starts.size(); ++i) {
    blender.add(i, to_frames(clip, schedule.starts[i], schedule.window));
  }
  EXPECT_EQ(blender.clip(24).rgb, clip.rgb);
}

TEST_F(ToolsDenoise, NoiseHasItsSigmaAndItsSeed) {
  const Clip grey{4, 50, 50, 25, std::vector<std::uint8_t>(4 * 50 * 50 * 3, 128)};
  const Clip noisy = add_noise(grey, 20, seed_);
  EXPECT_EQ(noisy.rgb, add_noise(grey, 20, seed_).rgb);
  EXPECT_NE(noisy.rgb, add_noise(grey, 20, seed_ + 1).rgb);
  double sum = 0;
  double squares = 0;
  for (const std::uint8_t byte : noisy.rgb) {
    sum += byte - 128.0;
    squares += (byte - 128.0) * (byte - 128.0);
  }
  const auto count = static_cast<double>(noisy.rgb.size());
  // Six standard errors.
  EXPECT_NEAR(sum / count, 0, 6 * 20 / std::sqrt(count));
  EXPECT_NEAR(std::sqrt(squares / count), 20, 6 * 20 / std::sqrt(2 * count));
}

}  // namespace
}  // namespace vidsparse::tools
