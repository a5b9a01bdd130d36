#include "video.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "frame_stream.hpp"
#include "process.hpp"
#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

/// The last line ffmpeg wrote says what was wrong; the ones before are context.
std::string last_line(const std::string& text) {
  const std::size_t end = text.find_last_not_of(" \r\n");
  if (end == std::string::npos) return "no message";
  const std::size_t start = text.find_last_of("\r\n", end);
  const std::size_t first = start == std::string::npos ? 0 : start + 1;
  return printable(text.substr(first, end + 1 - first));
}

std::string quoted(const std::string& path) { return "\"" + printable(path) + "\""; }

double probe_rate(const std::string& input) {
  std::string text;
  run_reading("ffprobe",
              {"-v", "error", "-select_streams", "v:0", "-show_entries", "stream=avg_frame_rate",
               "-of", "csv=p=0", input},
              [&](const char* data, std::size_t size) {
                text.append(data, size);
                return true;
              });
  return parse_frame_rate(text.substr(0, text.find_first_of("\r\n,")));
}

}  // namespace

Image Clip::picture(int index) const {
  return Image(std::vector<std::uint8_t>(frame(index), frame(index) + frame_bytes()), width,
               height);
}

Clip read_video(const std::string& argument, const std::string& path, int width, int height,
                int first, int frames) {
  if (!program_exists("ffmpeg") || !program_exists("ffprobe")) {
    refuse(argument, "ffmpeg and ffprobe on PATH to read it (Debian: apt install ffmpeg)",
           "neither or only one of them");
  }
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    refuse(argument, "a video file", quoted(path) + ", which is no file");
  }
  // "file:" keeps names such as "-x.mp4" and "concat:..." from being anything else.
  const std::string input = "file:" + path;
  // Frame numbers, not times: exact for every container. Frames before `first` are decoded and
  // dropped by the filter.
  const std::string size = std::to_string(width) + ":" + std::to_string(height);
  const std::string filter =
      "trim=start_frame=" + std::to_string(first) + ",setpts=PTS-STARTPTS,scale=" + size;
  FrameStream stream(width, height, frames);
  const ProcessResult result =
      run_reading("ffmpeg",
                  {"-v", "error", "-nostdin", "-i", input, "-map", "0:v:0", "-vf", filter, "-vsync",
                   "passthrough", "-frames:v", std::to_string(frames), "-f", "rawvideo", "-pix_fmt",
                   "rgb24", "-"},
                  [&](const char* data, std::size_t count) { return stream.add(data, count); });
  Clip clip = stream.finish();
  clip.frames_per_second = probe_rate(input);
  if (clip.frames == 0) {
    refuse(argument, "a readable video with a frame " + std::to_string(first),
           quoted(path) + " (ffmpeg: " + last_line(result.error_text) + ")");
  }
  return clip;
}

void write_video(const std::string& argument, const std::string& path, const Clip& clip) {
  const std::string size = std::to_string(clip.width) + "x" + std::to_string(clip.height);
  char rate[32];
  std::snprintf(rate, sizeof rate, "%.6f", clip.frames_per_second);
  std::vector<std::string> command{"-v",       "error", "-y", "-f", "rawvideo",
                                   "-pix_fmt", "rgb24", "-s", size, "-framerate",
                                   rate,       "-i",    "-"};
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension == ".mp4" || extension == ".mov" || extension == ".mkv") {
    // yuv420p plays everywhere but needs even sides. Other formats have their own defaults.
    const bool even = clip.width % 2 == 0 && clip.height % 2 == 0;
    for (const char* word : {"-c:v", "libx264", "-crf", "12", "-preset", "fast", "-pix_fmt"}) {
      command.emplace_back(word);
    }
    command.emplace_back(even ? "yuv420p" : "yuv444p");
  }
  command.push_back("file:" + path);

  std::size_t sent = 0;
  ProcessResult result = run_writing("ffmpeg", command, [&](char* buffer, std::size_t capacity) {
    const std::size_t count = std::min(capacity, clip.rgb.size() - sent);
    std::memcpy(buffer, clip.rgb.data() + sent, count);
    sent += count;
    return count;
  });
  std::size_t readable = 0;
  if (result.exit_code == 0) {
    result = run_reading("ffmpeg",
                         {"-v", "error", "-nostdin", "-i", "file:" + path, "-f", "rawvideo",
                          "-pix_fmt", "rgb24", "-"},
                         [&](const char*, std::size_t count) {
                           readable += count;
                           return true;
                         });
  }
  if (result.exit_code != 0 || readable < clip.rgb.size()) {
    std::error_code unknown;
    const auto space =
        std::filesystem::space(std::filesystem::absolute(path).parent_path(), unknown);
    const bool full = !unknown && space.available < (1U << 16);
    refuse(argument,
           full ? "the disk is full: the clip could not be written"
                : "the clip could not be written (ffmpeg: " + last_line(result.error_text) + ")");
  }
}

}  // namespace vidsparse::tools
