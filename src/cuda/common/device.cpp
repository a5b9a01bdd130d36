#include "cuda/common/device.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace vidsparse::cuda {

Verdict has_capability(const Device& device, int major, int minor) {
  if (device.kind != Device::Kind::cuda) return Verdict::no("the device is " + device.to_string());
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // not left behind for the caller's own checks
    return Verdict::no("expected a CUDA driver and device, got: " +
                       std::string(cudaGetErrorString(status)));
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
