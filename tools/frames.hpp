#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "video.hpp"

namespace vidsparse::tools {

/// Consecutive frames with pixels in [0, 1], [frames, height, width, 3].
struct Frames {
  int frames = 0;
  int height = 0;
  int width = 0;
  std::vector<float> rgb;

  Frames() = default;
  Frames(int count, int rows, int columns)
      : frames(count), height(rows), width(columns), rgb(pixels() * 3) {}

  std::size_t pixels() const {
    return static_cast<std::size_t>(frames) * static_cast<std::size_t>(height) *
           static_cast<std::size_t>(width);
  }
  const float* pixel(int t, int y, int x) const { return rgb.data() + index(t, y, x) * 3; }
  float* pixel(int t, int y, int x) { return rgb.data() + index(t, y, x) * 3; }

 private:
  std::size_t index(int t, int y, int x) const {
    return (static_cast<std::size_t>(t) * static_cast<std::size_t>(height) +
            static_cast<std::size_t>(y)) *
               static_cast<std::size_t>(width) +
           static_cast<std::size_t>(x);
  }
};

/// Frames [first, first + count) of a clip.
Frames to_frames(const Clip& clip, int first, int count);

/// A copy of the clip with Gaussian noise of standard deviation `sigma` (0..255 scale), rounded and
/// clamped to 8 bits as a camera would. The same seed gives the same noise on every machine.
Clip add_noise(const Clip& clip, double sigma, std::uint64_t seed);

/// Where the windows over a clip begin, and how their results are blended.
struct WindowSchedule {
  int frames = 0;  ///< of the clip
  int window = 0;  ///< frames of each window, at most `frames`
  std::vector<int> starts;

  /// Consecutive windows share at least `overlap` frames; the last one ends with the clip.
  WindowSchedule(int clip_frames, int window_frames, int overlap);

  /// Weight of frame `offset` of window `index` in the clip's frame it shows; over all windows that
  /// show a frame the weights add up to 1. Towards a window's ends, where fewer neighbours were
  /// seen, it falls off.
  double weight(std::size_t index, int offset) const;
};

/// Adds up windows by their weights.
class Blender {
 public:
  Blender(WindowSchedule schedule, int height, int width);
  void add(std::size_t window, const Frames& result);
  /// The blended clip in 8 bits.
  Clip clip(double frames_per_second) const;

 private:
  WindowSchedule schedule_;
  Frames sum_;
};

}  // namespace vidsparse::tools
