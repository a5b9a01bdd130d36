#include "frame_stream.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

namespace vidsparse::tools {

double parse_frame_rate(const std::string& text) {
  double over = 0;
  double under = 1;
  const char* end = text.data() + text.size();
  const auto [slash, error] = std::from_chars(text.data(), end, over);
  if (error != std::errc()) return 25;
  if (slash != end && *slash == '/') std::from_chars(slash + 1, end, under);
  const double rate = under > 0 ? over / under : 0;
  return rate > 0.01 && rate < 1000 ? rate : 25;
}

FrameStream::FrameStream(int width, int height, int frames) {
  clip_.width = width;
  clip_.height = height;
  wanted_ = clip_.frame_bytes() * static_cast<std::size_t>(frames);
}

bool FrameStream::add(const char* data, std::size_t size) {
  const std::size_t taken = std::min(size, wanted_ - clip_.rgb.size());
  clip_.rgb.insert(clip_.rgb.end(), data, data + taken);
  return clip_.rgb.size() < wanted_;
}

Clip FrameStream::finish() {
  clip_.frames = static_cast<int>(clip_.rgb.size() / clip_.frame_bytes());
  clip_.rgb.resize(clip_.frame_bytes() * static_cast<std::size_t>(clip_.frames));
  return std::move(clip_);
}

}  // namespace vidsparse::tools
