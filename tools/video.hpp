#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "image.hpp"

namespace vidsparse::tools {

/// Frames of 8-bit RGB, [frames, height, width, 3].
struct Clip {
  int frames = 0;
  int height = 0;
  int width = 0;
  double frames_per_second = 25;
  std::vector<std::uint8_t> rgb;

  std::size_t frame_bytes() const {
    return static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
  }
  const std::uint8_t* frame(int index) const {
    return rgb.data() + static_cast<std::size_t>(index) * frame_bytes();
  }
  Image picture(int index) const;
};

/// Decodes up to `frames` frames of `path` from frame `first` on, scaled to width x height, through
/// ffmpeg. Throws Error naming `argument`: ffmpeg missing, file missing, unreadable, or without a
/// frame in that range. A clip that ends early gives fewer frames.
Clip read_video(const std::string& argument, const std::string& path, int width, int height,
                int first, int frames);

/// Encodes `clip` into `path` (whose extension names the format) through ffmpeg, then reads it back
/// to make sure that all frames are there: ffmpeg does not always notice a full disk. The caller
/// passes AtomicFile::temporary(). Throws Error naming `argument`.
void write_video(const std::string& argument, const std::string& path, const Clip& clip);

}  // namespace vidsparse::tools
