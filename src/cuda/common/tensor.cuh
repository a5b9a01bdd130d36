#pragma once

#include <cstdint>

namespace vidsparse::cuda {

/// Addresses in a [B, rows, heads, D] tensor, D contiguous; strides count elements. `rows` are
/// tokens, or tiles of a pooled tensor stored in any order of its dimensions.
template <class T>
struct Tensor {
  T* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;

  constexpr T* row(std::int64_t batch, std::int64_t row_index, std::int64_t head) const {
    return data + batch * batch_stride + row_index * row_stride + head * head_stride;
  }
  constexpr explicit operator bool() const { return data != nullptr; }
};

}  // namespace vidsparse::cuda
