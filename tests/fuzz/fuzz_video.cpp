// Any bytes from ffmpeg's pipe and from ffprobe: whole frames and a usable rate come out.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <string>

#include "frame_stream.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vidsparse::tools;
  FuzzedDataProvider input(data, size);
  const double rate = parse_frame_rate(input.ConsumeRandomLengthString(40));
  if (!(rate > 0.01 && rate < 1000)) std::abort();

  const int width = input.ConsumeIntegralInRange(1, 8);
  const int height = input.ConsumeIntegralInRange(1, 8);
  const int frames = input.ConsumeIntegralInRange(1, 5);
  FrameStream stream(width, height, frames);
  std::string sent;
  bool wants_more = true;
  while (input.remaining_bytes() > 0) {
    const std::string piece = input.ConsumeRandomLengthString(300);
    wants_more = stream.add(piece.data(), piece.size());
    sent += piece;
  }
  const Clip clip = stream.finish();
  if (clip.frames < 0 || clip.frames > frames || wants_more != (clip.frames < frames)) std::abort();
  if (clip.rgb.size() != clip.frame_bytes() * static_cast<std::size_t>(clip.frames)) std::abort();
  if (sent.compare(0, clip.rgb.size(), std::string(clip.rgb.begin(), clip.rgb.end())) != 0) {
    std::abort();
  }
  return 0;
}
