#include <algorithm>
#include <bit>

#include "cuda/common/edge_box.cuh"

namespace vidsparse::cuda {

EdgeBoxes make_edge_boxes(const Side& side, bool limited) {
  EdgeBoxes result;
  const auto add = [&](const EdgeBox& box) {
    std::int32_t at = result.count;
    while (at > 0 && result.boxes[at - 1].units() > box.units()) --at;
    if (at == EdgeBoxes::kMost) return;
    result.count = std::min(result.count + 1, EdgeBoxes::kMost);
    for (std::int32_t i = result.count - 1; i > at; --i) result.boxes[i] = result.boxes[i - 1];
    result.boxes[at] = box;
  };
  for (const std::int32_t line : {0, 1}) {
    const Box& box = side.boxes[line];
    const EdgeBox whole = {0, 6 - box.log_h - box.log_w, box.log_h, box.log_w};
    for (std::int32_t s = 0; s < side.segment_count; ++s) {
      const Raster& segment = side.segments[s];
      if (segment.line != line) continue;
      // Cut `side` of a fragment's box so that it holds `rest`, if that makes it half as small.
      const auto cut = [&](std::int32_t EdgeBox::*side_of, std::int32_t rest) {
        EdgeBox edge = whole;
        edge.segment = s;
        const auto log_rest =
            static_cast<std::int32_t>(std::bit_width(static_cast<std::uint32_t>(rest - 1)));
        const std::int32_t least = std::max(0, whole.*side_of - 2);  // 16 slots
        edge.*side_of = std::max(log_rest, least);
        if (edge.*side_of < whole.*side_of) add(edge);
      };
      const auto rest = [](std::int32_t length, std::int32_t log_part) {
        return ((length - 1) & ((1 << log_part) - 1)) + 1;
      };
      if (line == 1 && limited) {
        cut(&EdgeBox::log_w, 16);
        cut(&EdgeBox::log_w, 32);
        continue;
      }
      cut(&EdgeBox::log_t, rest(segment.grid.t, whole.log_t));
      cut(&EdgeBox::log_h, rest(segment.grid.h, whole.log_h));
      cut(&EdgeBox::log_w, rest(segment.grid.w, whole.log_w));
    }
  }
  return result;
}

}  // namespace vidsparse::cuda
