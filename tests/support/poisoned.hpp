#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "vidsparse/tensor.hpp"

namespace vidsparse::testing {

/// How the four dimensions B, S, H, D of a tensor lie in memory.
enum class Order { bshd, bhsd, padded, wide };

/// Strides of a [B, S, H, D] tensor; `padded` leaves a gap after every token and head, `wide` one
/// of multiples of 64 elements, which a GPU's copy engine can step over.
inline std::array<std::int64_t, 4> strides_of(Order order, const std::array<std::int64_t, 4>& s) {
  switch (order) {
    case Order::bhsd:
      return {s[1] * s[2] * s[3], s[3], s[1] * s[3], 1};
    case Order::padded: {
      const std::int64_t token = s[2] * (s[3] + 5) + 3;
      return {s[1] * token + 7, token, s[3] + 5, 1};
    }
    case Order::wide: {
      const std::int64_t token = s[2] * (s[3] + 64) + 192;
      return {s[1] * token + 64, token, s[3] + 64, 1};
    }
    default:
      return {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  }
}

/// Host memory filled with bytes 0xFF, which are NaN in every floating dtype, from which tensors
/// are handed out. Afterwards it tells whether anything outside of them was written.
class Poisoned {
 public:
  Poisoned() : Poisoned(0) {}
  explicit Poisoned(std::size_t bytes)
      : bytes_(bytes + 2 * kGuard + 64, std::byte{0xFF}), given_(bytes_.size(), 0) {}

  /// The first byte past the front guard, 64-byte aligned.
  std::byte* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data()) + kGuard;
    return bytes_.data() + kGuard + (64 - address % 64) % 64;
  }

  /// `first` counts elements from data().
  TensorRef give(DType dtype, int rank, const std::array<std::int64_t, 4>& shape,
                 const std::array<std::int64_t, 4>& strides, std::int64_t first = 0) {
    std::byte* base = data() + first * static_cast<std::int64_t>(size_of(dtype));
    const TensorRef tensor(base, dtype, rank, shape, strides);
    std::array<std::int64_t, 4> at{};
    for (std::int64_t n = 0; n < tensor.elements(); ++n) {
      std::int64_t rest = n;
      std::int64_t offset = 0;
      for (int i = rank - 1; i >= 0; --i) {
        const auto axis = static_cast<std::size_t>(i);
        at[axis] = rest % shape[axis];
        rest /= shape[axis];
        offset += at[axis] * strides[axis];
      }
      const std::ptrdiff_t byte =
          base - bytes_.data() + offset * static_cast<std::ptrdiff_t>(size_of(dtype));
      std::fill_n(given_.begin() + byte, size_of(dtype), std::uint8_t{1});
    }
    return tensor;
  }

  TensorRef give_dense(DType dtype, int rank, const std::array<std::int64_t, 4>& shape) {
    return give(dtype, rank, shape, TensorRef::dense(nullptr, dtype, rank, shape).strides);
  }

  /// Marks bytes from data() on as fair to write.
  std::byte* give_bytes(std::size_t bytes) {
    const std::ptrdiff_t first = data() - bytes_.data();
    std::fill_n(given_.begin() + first, bytes, std::uint8_t{1});
    return data();
  }

  /// Everything, guards included.
  std::span<std::byte> storage() { return bytes_; }
  std::span<const std::byte> storage() const { return bytes_; }

  bool intact() const {
    std::size_t spoiled = 0;
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      spoiled += static_cast<std::size_t>(given_[i] == 0 && bytes_[i] != std::byte{0xFF});
    }
    return spoiled == 0;
  }

  /// Same contents, for two buffers of the same size and use.
  bool same_as(Poisoned& other) {
    const std::size_t bytes = bytes_.size() - 2 * kGuard - 64;
    return bytes == other.bytes_.size() - 2 * kGuard - 64 &&
           std::memcmp(data(), other.data(), bytes) == 0;
  }

 private:
  static constexpr std::size_t kGuard = 256;
  std::vector<std::byte> bytes_;
  std::vector<std::uint8_t> given_;
};

/// Elements from the base of a strided tensor to one past its last.
inline std::int64_t span_of(int rank, const std::array<std::int64_t, 4>& shape,
                            const std::array<std::int64_t, 4>& strides) {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(rank); ++i) {
    if (shape[i] == 0) return 0;
    last += (shape[i] - 1) * strides[i];
  }
  return last + 1;
}

/// One tensor in poisoned memory of its own.
struct PoisonedTensor {
  Poisoned memory;
  TensorRef ref;

  PoisonedTensor() = default;
  PoisonedTensor(DType dtype, int rank, const std::array<std::int64_t, 4>& shape)
      : PoisonedTensor(dtype, rank, shape, TensorRef::dense(nullptr, dtype, rank, shape).strides) {}
  PoisonedTensor(DType dtype, int rank, const std::array<std::int64_t, 4>& shape,
                 const std::array<std::int64_t, 4>& strides, std::int64_t first = 0)
      : memory(static_cast<std::size_t>(span_of(rank, shape, strides) + first) * size_of(dtype)) {
    ref = memory.give(dtype, rank, shape, strides, first);
  }
};

}  // namespace vidsparse::testing
