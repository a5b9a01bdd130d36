#include "cuda/common/device.hpp"

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

namespace vidsparse::cuda {

namespace {

/// Whether the driver is there and new enough for the runtime this was built with.
Verdict has_driver() {
  const auto text = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  const std::string expected = "expected a driver for CUDA " + text(CUDART_VERSION) + " (" +
                               (CUDART_VERSION >= 13000 ? "580" : "525") + " or newer)";
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

namespace {

/// A device's compute capability, or why there is none.
struct Capability {
  Verdict verdict;
  int major = 0;
  int minor = 0;
};

Capability capability_of(const Device& device) {
  if (device.kind != Device::Kind::cuda) {
    return {Verdict::no("the device is " + device.to_string())};
  }
  if (const Verdict driver = has_driver(); !driver.ok) return {driver};
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return {Verdict::no("expected a CUDA device, got: " + std::string(cudaGetErrorString(status)))};
  }
  if (device.index < 0 || device.index >= count) {
    return {Verdict::no("expected a device below " + std::to_string(count) + ", got " +
                        device.to_string())};
  }
  Capability found;
  if (cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, device.index) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, device.index) !=
          cudaSuccess) {
    cudaGetLastError();
    return {Verdict::no("the driver does not tell the capability of " + device.to_string())};
  }
  return found;
}

std::string text_of(int major, int minor) {
  return std::to_string(major) + "." + std::to_string(minor);
}

}  // namespace

Verdict has_capability(const Device& device, int major, int minor) {
  const Capability found = capability_of(device);
  if (!found.verdict.ok) return found.verdict;
  if (found.major != major || found.minor != minor) {
    return Verdict::no("expected compute capability " + text_of(major, minor) + ", got " +
                       text_of(found.major, found.minor));
  }
  return Verdict::yes("compute capability " + text_of(major, minor));
}

Verdict has_capability_from(const Device& device, int major, int minor, const std::string& built) {
  const Capability found = capability_of(device);
  if (!found.verdict.ok) return found.verdict;
  if (std::pair(found.major, found.minor) < std::pair(major, minor)) {
    return Verdict::no("expected compute capability " + text_of(major, minor) +
                       " or newer (built: " + built + "), got " +
                       text_of(found.major, found.minor));
  }
  return Verdict::yes("compute capability " + text_of(found.major, found.minor));
}

}  // namespace vidsparse::cuda
