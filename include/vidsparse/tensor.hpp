#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "vidsparse/dtype.hpp"
#include "vidsparse/export.hpp"

namespace vidsparse {

/// A non-owning tensor of up to four dimensions. Strides count elements and may be anything (views
/// of a fused qkv are welcome) except that the last dimension is contiguous. A default-constructed
/// one means "absent".
template <class Pointer>
struct BasicTensor {
  Pointer data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};

  constexpr BasicTensor() = default;
  constexpr BasicTensor(Pointer pointer, DType type, int dimensions,
                        std::array<std::int64_t, 4> sides, std::array<std::int64_t, 4> steps)
      : data(pointer), dtype(type), rank(dimensions), shape(sides), strides(steps) {}

  /// A mutable tensor serves where a const one is read.
  template <class Other>
  constexpr BasicTensor(const BasicTensor<Other>& other)  // NOLINT: implicit like T* to const T*
      : data(other.data),
        dtype(other.dtype),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides) {}

  /// Row-major, dense. `sides` past `dimensions` are ignored.
  static constexpr BasicTensor dense(Pointer pointer, DType type, int dimensions,
                                     std::array<std::int64_t, 4> sides) {
    std::array<std::int64_t, 4> steps{};
    std::int64_t step = 1;
    for (int i = dimensions - 1; i >= 0; --i) {
      steps[static_cast<std::size_t>(i)] = step;
      step *= sides[static_cast<std::size_t>(i)];
    }
    return BasicTensor(pointer, type, dimensions, sides, steps);
  }

  /// Whether the tensor was given at all. (An empty one has a rank but may have no data.)
  constexpr explicit operator bool() const { return rank > 0; }

  constexpr std::int64_t elements() const {
    std::int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= shape[static_cast<std::size_t>(i)];
    return rank == 0 ? 0 : count;
  }

  /// Elements from the base to element (i, j, k, 0).
  constexpr std::int64_t offset(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0) const {
    return i * strides[0] + j * strides[1] + k * strides[2];
  }
};

using TensorView = BasicTensor<const void*>;  ///< read
using TensorRef = BasicTensor<void*>;         ///< written

/// "[1, 32760, 12, 128] bf16".
VIDSPARSE_API std::string to_string(const TensorView& tensor);

}  // namespace vidsparse
