#include "cuda/common/context.hpp"

#include <cudaTypedefs.h>

#include <string>

#include "cuda/common/driver.hpp"
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
  select = choose_select_shape({.head_dim = head_dim(),
                                .heads = batch() * heads(),
                                .query_tiles = query.tiles,
                                .key_tiles = key.tiles,
                                .multiprocessors = multiprocessors,
                                .shared_bytes = shared_bytes});
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the caller's own checks
  throw Error(ErrorCode::internal, what,
              "expected success, got " + std::string(cudaGetErrorName(status)) + " (" +
                  cudaGetErrorString(status) + ")");
}

namespace {

/// The driver's calls that lend a thread a device's primary context.
struct Driver {
  PFN_cuDeviceGet_v2000 device = nullptr;
  PFN_cuDevicePrimaryCtxRetain_v7000 retain = nullptr;
  PFN_cuDevicePrimaryCtxRelease_v11000 release = nullptr;
  PFN_cuCtxPushCurrent_v4000 push = nullptr;
  PFN_cuCtxPopCurrent_v4000 pop = nullptr;

  Driver() {
    find(device, "cuDeviceGet", 2000);
    find(retain, "cuDevicePrimaryCtxRetain", 7000);
    find(release, "cuDevicePrimaryCtxRelease", 11000);
    find(push, "cuCtxPushCurrent", 4000);
    find(pop, "cuCtxPopCurrent", 4000);
  }

  template <class Function>
  static void find(Function& function, const char* name, unsigned version) {
    function = reinterpret_cast<Function>(driver_entry(name, version));
    if (function == nullptr) {
      throw Error(ErrorCode::internal, name, "expected a driver that has it, got none");
    }
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

void check(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return;
  throw Error(ErrorCode::internal, what,
              "expected success, got CUresult " + std::to_string(status));
}

}  // namespace

CurrentDevice::CurrentDevice(int index) : index_(index) {
  check(cudaGetDevice(&former_), "cudaGetDevice");
  if (former_ == index_) {
    // A thread that has not used CUDA yet (autograd's) has no context, which the driver needs to
    // encode tensor maps.
    check(cudaSetDevice(index_), "cudaSetDevice");
    return;
  }
  // cudaSetDevice(former_) at the end would open a context on a device that the caller may never
  // use, which takes hundreds of megabytes of it. The run-time library keeps the one of index_.
  check(cudaInitDevice(index_, 0, 0), "cudaInitDevice");
  CUdevice device = 0;
  CUcontext context = nullptr;
  check(driver().device(&device, index_), "cuDeviceGet");
  check(driver().retain(&context, device), "cuDevicePrimaryCtxRetain");
  const CUresult pushed = driver().push(context);
  driver().release(device);
  check(pushed, "cuCtxPushCurrent");
}

CurrentDevice::~CurrentDevice() {
  CUcontext context = nullptr;
  if (former_ != index_) driver().pop(&context);
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
