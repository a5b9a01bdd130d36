#include "cuda/sm80/head_rows.hpp"

#include <string>

#include "cuda/common/context.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm80 {

HeadRows head_rows(const char* name, const TensorView& tensor) {
  require_aligned_rows(name, tensor);
  const auto bytes = [&](std::size_t side) {
    return tensor.shape[side] > 1 ? tensor.strides[side] * 2 : 0;
  };
  if (bytes(1) > INT32_MAX || bytes(1) < INT32_MIN) {
    throw Error(ErrorCode::unsupported, name,
                "expected tokens less than 2^31 bytes apart, got " + to_string(tensor) +
                    " with a stride of " + std::to_string(tensor.strides[1]));
  }
  return {static_cast<const char*>(tensor.data), bytes(0), bytes(2),
          static_cast<std::int32_t>(bytes(1))};
}

}  // namespace vidsparse::cuda::sm80
