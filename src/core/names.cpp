#include <string>

#include "vidsparse/dtype.hpp"
#include "vidsparse/sequence.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/version.hpp"

namespace vidsparse {

const char* version() { return VIDSPARSE_VERSION; }

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u8:
      return "u8";
  }
  return "unknown dtype";
}

std::string to_string(const TensorView& tensor) {
  if (!tensor) return "no tensor";
  if (tensor.rank > 4) return "a tensor of rank " + std::to_string(tensor.rank);
  std::string text = "[";
  for (int i = 0; i < tensor.rank; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.shape[static_cast<std::size_t>(i)]);
  }
  return text + "] " + name_of(tensor.dtype);
}

std::string Sequence::to_string() const {
  if (is_packed_) {
    return "Packed(" + std::to_string(packed_.tiles) + " x " + std::to_string(packed_.slots) + ")";
  }
  if (segments_.empty()) return "empty sequence";
  std::string text;
  for (const Segment& segment : segments_) {
    if (!text.empty()) text += " + ";
    if (const auto* plain = std::get_if<Plain>(&segment)) {
      text += "Plain(" + std::to_string(plain->length) + ")";
    } else {
      const Video& video = std::get<Video>(segment);
      text += "Video(" + std::to_string(video.t) + "x" + std::to_string(video.h) + "x" +
              std::to_string(video.w) + ")";
    }
  }
  return text;
}

}  // namespace vidsparse
