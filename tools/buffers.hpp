#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "vidsparse/plan.hpp"
#include "vidsparse/tensor.hpp"

namespace vidsparse::tools {

/// Memory of 64-byte alignment, not initialised: pages nobody touches cost nothing.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  /// Room for a dense tensor.
  explicit Buffer(const TensorView& tensor);

  void* data() const { return data_.get(); }
  std::size_t size() const { return bytes_; }
  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data_.get()), bytes_}; }
  Workspace workspace() const { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  std::size_t bytes_ = 0;
};

/// A dense tensor together with its memory.
struct OwnedTensor {
  OwnedTensor() = default;
  /// `shape` is a tensor whose data does not matter.
  explicit OwnedTensor(const TensorView& shape);

  Buffer memory;
  TensorRef ref;
};

// The op's tensors for a plan, dense, over `data`; null where only their shape matters.
TensorRef query_tensor(const Plan& plan, void* data = nullptr);     ///< [B, Sq, H, D]
TensorRef key_tensor(const Plan& plan, void* data = nullptr);       ///< [B, Sk, G, D]
TensorRef token_rows(const Plan& plan, void* data = nullptr);       ///< acc [B, H, Sq]
TensorRef query_pooled(const Plan& plan, void* data = nullptr);     ///< acc [B, H, Nq, D]
TensorRef key_pooled(const Plan& plan, void* data = nullptr);       ///< acc [B, G, Nk, D]
TensorRef query_tile_rows(const Plan& plan, void* data = nullptr);  ///< acc [B, H, Nq]

}  // namespace vidsparse::tools
