#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "core/backend.hpp"
#include "cuda/common/geometry.cuh"
#include "cuda/common/select_shape.hpp"
#include "cuda/common/side.hpp"
#include "cuda/common/tensor.cuh"

namespace vidsparse::cuda {

/// What the stages need to know of a plan and its device, gathered once when it is made.
struct Context {
  const core::Setting* setting;
  Side query;  ///< everything valid; calls add their lengths
  Side key;
  int multiprocessors = 0;
  int shared_bytes = 0;  ///< of a multiprocessor that one thread block can have
  int l2_bytes = 0;
  SelectShape select;

  /// Asks the device. Throws Error.
  explicit Context(const core::Setting& plan);

  DType dtype() const { return setting->problem.dtype; }
  std::int64_t batch() const { return setting->problem.batch; }
  std::int64_t heads() const { return setting->problem.heads_q; }
  std::int64_t key_heads() const { return setting->problem.key_heads(); }
  /// Query heads that share a key head.
  std::int64_t group() const { return heads() / key_heads(); }
  int head_dim() const { return static_cast<int>(setting->problem.head_dim); }
  /// Batch entries whose key fragments differ: all where lengths come at run time, else one for
  /// all.
  std::int32_t table_batches(const Lengths& lengths) const {
    return lengths.key ? static_cast<std::int32_t>(batch()) : 1;
  }
  double scale(const std::optional<double>& given) const {
    return given ? *given : 1.0 / std::sqrt(static_cast<double>(head_dim()));
  }
};

/// Throws Error(internal) naming `what` unless a call of the CUDA runtime succeeded.
void check(cudaError_t status, const char* what);

/// Lets a kernel's blocks have that much shared memory. `what`: as check() says it.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), int bytes,
                  const char* what = "cudaFuncSetAttribute") {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        what);
}

/// Lets a multiprocessor give a kernel all the shared memory it can.
template <class... Parameters>
void prefer_shared(void (*kernel)(Parameters...)) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute");
}

/// Makes a device current and the former one again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int former_ = 0;
  int index_;
};

/// [B, S, H, D] as kernels take it.
template <class T, class Pointer>
Tensor<T> by_token(const BasicTensor<Pointer>& tensor) {
  return {static_cast<T*>(tensor.data), tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

/// [B, H, rows] or [B, H, rows, D] as kernels take it.
template <class T, class Pointer>
Tensor<T> by_head(const BasicTensor<Pointer>& tensor) {
  return {static_cast<T*>(tensor.data), tensor.strides[0], tensor.strides[2], tensor.strides[1]};
}

/// The mask as kernels take it: 32-bit halves of the bitmap's words, strides counted in them.
template <class Parameters>
void set_mask(Parameters& parameters, const TileMaskView& mask) {
  parameters.mask = reinterpret_cast<const std::uint32_t*>(mask.words);
  parameters.mask_row = mask.shape.row_words() * 2;
  parameters.mask_head = mask.head_stride * 2;
  parameters.mask_batch = mask.batch_stride * 2;
}

/// Whether every row of a tensor starts at a multiple of 16 bytes.
bool rows_aligned(const TensorView& tensor);
/// Throws Error naming `name` unless it does; an absent tensor is fine.
void require_aligned_rows(const char* name, const TensorView& tensor);

}  // namespace vidsparse::cuda
