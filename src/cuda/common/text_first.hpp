#pragma once

#include <cstdint>

namespace vidsparse::cuda {

/// The order in which a launch takes the fragments of a head. Text beside the video may attend to
/// everything, ten times what others do: it comes first, wherever it stands, and that of all heads
/// before anything else, or a launch would end with a few blocks at work. Fragments [0, front) are
/// text, then come those of the videos, and of text between two of them, then `back` ones of text.
struct TextFirst {
  std::int32_t front = 0;
  std::int32_t video = 0;
  std::int32_t back = 0;

  constexpr std::int32_t text() const { return front + back; }
  constexpr std::int32_t fragments() const { return text() + video; }

  /// The fragment that is number `turn` in this order.
  constexpr std::int32_t fragment(std::int32_t turn) const {
    return turn < text() ? text_fragment(turn) : turn - back;
  }
  /// The same of a turn below text().
  constexpr std::int32_t text_fragment(std::int32_t turn) const {
    return turn + (turn < front ? 0 : video);
  }
};

}  // namespace vidsparse::cuda
