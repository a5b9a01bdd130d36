#include "cuda/common/context.hpp"

#include <string>

#include "vidsparse/error.hpp"

namespace vidsparse::cuda {

Context::Context(const core::Setting& plan)
    : setting(&plan), query(make_side(plan.query)), key(make_side(plan.key)) {
  const CurrentDevice current(plan.device.index);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, plan.device.index), "cudaDeviceGetAttribute");
    return value;
  };
  multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  l2_bytes = ask(cudaDevAttrL2CacheSize);
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the caller's own checks
  throw Error(ErrorCode::internal, what,
              "expected success, got " + std::string(cudaGetErrorName(status)) + " (" +
                  cudaGetErrorString(status) + ")");
}

CurrentDevice::CurrentDevice(int index) : index_(index) {
  check(cudaGetDevice(&former_), "cudaGetDevice");
  // Even if it is the current one: a thread that has not used CUDA yet (autograd's) has no context,
  // which the driver needs to encode tensor maps.
  check(cudaSetDevice(index_), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (former_ != index_) cudaSetDevice(former_);
}

bool rows_aligned(const TensorView& tensor) {
  const std::int64_t vector = 16 / static_cast<std::int64_t>(size_of(tensor.dtype));
  bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  for (std::size_t i = 0; i < 3; ++i) {
    aligned = aligned && (tensor.shape[i] <= 1 || tensor.strides[i] % vector == 0);
  }
  return aligned;
}

void require_aligned_rows(const char* name, const TensorView& tensor) {
  if (!tensor || rows_aligned(tensor)) return;
  throw Error(ErrorCode::unsupported, name,
              "expected rows that start at multiples of 16 bytes, got " + to_string(tensor) +
                  " with strides " + std::to_string(tensor.strides[0]) + ", " +
                  std::to_string(tensor.strides[1]) + ", " + std::to_string(tensor.strides[2]));
}

}  // namespace vidsparse::cuda
