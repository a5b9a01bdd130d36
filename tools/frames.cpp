#include "frames.hpp"

#include <algorithm>
#include <boost/random/mersenne_twister.hpp>
#include <boost/random/normal_distribution.hpp>
#include <cmath>

namespace vidsparse::tools {
namespace {

std::uint8_t to_byte(double value) {
  return static_cast<std::uint8_t>(std::lround(std::clamp(value, 0.0, 255.0)));
}

}  // namespace

Frames to_frames(const Clip& clip, int first, int count) {
  Frames frames(count, clip.height, clip.width);
  const std::uint8_t* source = clip.frame(first);
  std::transform(source, source + frames.rgb.size(), frames.rgb.begin(),
                 [](std::uint8_t byte) { return static_cast<float>(byte) / 255.0F; });
  return frames;
}

Clip add_noise(const Clip& clip, double sigma, std::uint64_t seed) {
  // Boost's distributions, unlike the standard library's, are the same everywhere.
  boost::random::mt19937_64 generator(seed);
  boost::random::normal_distribution<double> normal(0.0, 1.0);
  Clip noisy = clip;
  for (std::uint8_t& byte : noisy.rgb) byte = to_byte(byte + sigma * normal(generator));
  return noisy;
}

WindowSchedule::WindowSchedule(int clip_frames, int window_frames, int overlap)
    : frames(clip_frames), window(std::min(window_frames, clip_frames)) {
  const int step = std::max(1, window - overlap);
  for (int start = 0; start + window < frames; start += step) starts.push_back(start);
  starts.push_back(frames - window);
}

double WindowSchedule::weight(std::size_t index, int offset) const {
  const auto ramp = [this](int place) { return std::min(place + 1, window - place); };
  const int frame = starts[index] + offset;
  double total = 0;
  for (const int start : starts) {
    const int place = frame - start;
    if (place >= 0 && place < window) total += ramp(place);
  }
  return ramp(offset) / total;
}

Blender::Blender(WindowSchedule schedule, int height, int width)
    : schedule_(std::move(schedule)), sum_(schedule_.frames, height, width) {}

void Blender::add(std::size_t window, const Frames& result) {
  const int values = result.height * result.width * 3;
  for (int offset = 0; offset < result.frames; ++offset) {
    const auto weight = static_cast<float>(schedule_.weight(window, offset));
    const float* source = result.pixel(offset, 0, 0);
    float* target = sum_.pixel(schedule_.starts[window] + offset, 0, 0);
    for (int i = 0; i < values; ++i) target[i] += weight * source[i];
  }
}

Clip Blender::clip(double frames_per_second) const {
  Clip clip;
  clip.frames = sum_.frames;
  clip.height = sum_.height;
  clip.width = sum_.width;
  clip.frames_per_second = frames_per_second;
  clip.rgb.resize(sum_.rgb.size());
  std::transform(sum_.rgb.begin(), sum_.rgb.end(), clip.rgb.begin(),
                 [](float value) { return to_byte(value * 255.0); });
  return clip;
}

}  // namespace vidsparse::tools
