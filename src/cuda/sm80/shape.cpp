#include "cuda/sm80/shape.hpp"

#include <cstdlib>
#include <string>

#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm80 {

Shape choose_shape(int shared_bytes) {
  if (const char* forced = std::getenv("VIDSPARSE_SM80_SHAPE")) {
    const std::string name = forced;
    if (name == "large") return Shape::large;
    if (name == "small") return Shape::small;
    throw Error(ErrorCode::invalid_argument, "VIDSPARSE_SM80_SHAPE",
                "expected large or small, got " + name);
  }
  return shared_bytes >= 160 * 1024 ? Shape::large : Shape::small;
}

}  // namespace vidsparse::cuda::sm80
