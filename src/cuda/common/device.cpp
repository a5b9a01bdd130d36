#include "cuda/common/device.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace vidsparse::cuda {

namespace {

/// Whether the driver is there and new enough for the runtime this was built with.
Verdict has_driver() {
  const auto text = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  const std::string expected = "expected a driver for CUDA " + text(CUDART_VERSION) + " or newer";
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    cudaGetLastError();  // not left behind for the caller's own checks
    return Verdict::no(expected + ", got none");
  }
  // Runtimes of one major version run on the driver of any of its minor ones.
  if (version / 1000 >= CUDART_VERSION / 1000) return Verdict::yes();
  return Verdict::no(expected + ", got one for " + text(version));
}

}  // namespace

Verdict has_capability(const Device& device, int major, int minor) {
  if (device.kind != Device::Kind::cuda) return Verdict::no("the device is " + device.to_string());
  if (const Verdict driver = has_driver(); !driver.ok) return driver;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return Verdict::no("expected a CUDA device, got: " + std::string(cudaGetErrorString(status)));
  }
  if (device.index < 0 || device.index >= count) {
    return Verdict::no("expected a device below " + std::to_string(count) + ", got " +
                       device.to_string());
  }
  int found_major = 0;
  int found_minor = 0;
  if (cudaDeviceGetAttribute(&found_major, cudaDevAttrComputeCapabilityMajor, device.index) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&found_minor, cudaDevAttrComputeCapabilityMinor, device.index) !=
          cudaSuccess) {
    cudaGetLastError();
    return Verdict::no("the driver does not tell the capability of " + device.to_string());
  }
  const auto text = [](int a, int b) { return std::to_string(a) + "." + std::to_string(b); };
  if (found_major != major || found_minor != minor) {
    return Verdict::no("expected compute capability " + text(major, minor) + ", got " +
                       text(found_major, found_minor));
  }
  return Verdict::yes("compute capability " + text(major, minor));
}

}  // namespace vidsparse::cuda
