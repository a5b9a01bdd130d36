#pragma once

#include <cstddef>
#include <string>

#include "video.hpp"

namespace vidsparse::tools {

/// What ffprobe prints for a stream's rate: "30000/1001" -> 29.97. What is no rate gives 25, as
/// ffmpeg assumes for raw frames.
double parse_frame_rate(const std::string& text);

/// Raw frames as they come out of a pipe, in pieces of any size.
class FrameStream {
 public:
  FrameStream(int width, int height, int frames);

  /// Takes the next piece; false once all frames are there.
  bool add(const char* data, std::size_t size);

  /// The whole frames that came; a frame that was cut off is dropped.
  Clip finish();

 private:
  Clip clip_;
  std::size_t wanted_;  // bytes
};

}  // namespace vidsparse::tools
