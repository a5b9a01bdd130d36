#pragma once

#include <cstdint>

#include "vidsparse/tensor.hpp"

namespace vidsparse::cuda::sm80 {

/// A [B, S, H, D] tensor as copies take it; strides count bytes.
struct HeadRows {
  const char* data = nullptr;
  std::int64_t batch_bytes = 0;
  std::int64_t head_bytes = 0;
  std::int32_t token_bytes = 0;

  /// The first token of a head.
  constexpr const char* head(std::int64_t batch, std::int64_t index) const {
    return data + batch * batch_bytes + index * head_bytes;
  }
};

/// Throws Error(unsupported) naming `name` unless its rows can be copied by 16 bytes and its tokens
/// are less than 2^31 bytes apart.
HeadRows head_rows(const char* name, const TensorView& tensor);

}  // namespace vidsparse::cuda::sm80
