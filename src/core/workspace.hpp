#pragma once

#include <cstddef>
#include <cstdint>

#include "vidsparse/plan.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse::core {

/// Hands out 64-byte aligned pieces of a caller's workspace. Over a null base it only counts, so a
/// kernel's layout function gives both its pointers and its size.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }

  /// A dense tensor of the given sides.
  TensorRef tensor(DType dtype, int rank, std::array<std::int64_t, 4> sides) {
    TensorRef dense = TensorRef::dense(nullptr, dtype, rank, sides);
    dense.data = take<std::byte>(dense.elements() * static_cast<std::int64_t>(size_of(dtype)));
    return dense;
  }

  TileMaskRef mask(const MaskShape& shape) { return {take<std::uint64_t>(shape.words()), shape}; }

  std::size_t used() const { return used_; }
  /// What has not been handed out yet, for a stage called inside another.
  Workspace rest(std::size_t bytes) const {
    return {base_ == nullptr ? nullptr : base_ + used_, bytes};
  }

  static constexpr std::size_t kAlignment = 64;

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace vidsparse::core
