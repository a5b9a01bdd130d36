#pragma once

#include <cstdint>

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

}  // namespace vidsparse::cuda::sm80
