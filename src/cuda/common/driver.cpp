#include "cuda/common/driver.hpp"

#include <cuda_runtime_api.h>

namespace vidsparse::cuda {

void* driver_entry(const char* name, unsigned version) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &entry, version, cudaEnableDefault, &found);
  if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) return entry;
  cudaGetLastError();  // not left behind for the caller's own checks
  return nullptr;
}

}  // namespace vidsparse::cuda
