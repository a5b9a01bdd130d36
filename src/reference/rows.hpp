#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "vidsparse/tensor.hpp"

namespace vidsparse::reference {

// Elements of tensors of any floating dtype, read as and written from T.

template <class T>
T load(const TensorView& tensor, std::int64_t offset) {
  switch (tensor.dtype) {
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(tensor.data)[offset]);
    case DType::f16:
      return core::from_f16(static_cast<const std::uint16_t*>(tensor.data)[offset]);
    case DType::bf16:
      return core::from_bf16(static_cast<const std::uint16_t*>(tensor.data)[offset]);
    default:
      return static_cast<const float*>(tensor.data)[offset];
  }
}

template <class T>
void store(const TensorRef& tensor, std::int64_t offset, T value) {
  switch (tensor.dtype) {
    case DType::f64:
      static_cast<double*>(tensor.data)[offset] = value;
      break;
    case DType::f16:
      static_cast<std::uint16_t*>(tensor.data)[offset] = core::to_f16(value);
      break;
    case DType::bf16:
      static_cast<std::uint16_t*>(tensor.data)[offset] = core::to_bf16(value);
      break;
    default:
      static_cast<float*>(tensor.data)[offset] = static_cast<float>(value);
  }
}

/// The D elements at (i, j, k) of a rank-4 tensor.
template <class T>
void load_row(const TensorView& tensor, std::int64_t i, std::int64_t j, std::int64_t k, T* row) {
  const std::int64_t offset = tensor.offset(i, j, k);
  for (std::int64_t d = 0; d < tensor.shape[3]; ++d) row[d] = load<T>(tensor, offset + d);
}

template <class T>
void store_row(const TensorRef& tensor, std::int64_t i, std::int64_t j, std::int64_t k,
               const T* row) {
  const std::int64_t offset = tensor.offset(i, j, k);
  for (std::int64_t d = 0; d < tensor.shape[3]; ++d) store(tensor, offset + d, row[d]);
}

/// All tokens of a head of a [B, S, H, D] tensor to +0: what pad slots keep.
inline void clear_head(const TensorRef& tensor, std::int64_t batch, std::int64_t head) {
  for (std::int64_t token = 0; token < tensor.shape[1]; ++token) {
    const std::int64_t offset = tensor.offset(batch, token, head);
    for (std::int64_t d = 0; d < tensor.shape[3]; ++d) store(tensor, offset + d, 0.0);
  }
}

}  // namespace vidsparse::reference
