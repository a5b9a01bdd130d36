#include "device/device_memory.hpp"

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#ifdef VIDSPARSE_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace vidsparse::tools {
namespace {

#ifdef VIDSPARSE_HAS_CUDA
void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void transfer(void* to, const void* from, std::size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
void synchronize() { require(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
void make_current(int index) { require(cudaSetDevice(index), "cudaSetDevice"); }
#else
[[noreturn]] void* allocate(std::size_t) { throw std::runtime_error("built without CUDA"); }
void release(void*) {}
void transfer(void*, const void*, std::size_t) {}
void synchronize() {}
void make_current(int) {}
#endif

constexpr std::align_val_t kAlignment{64};

}  // namespace

DeviceMemory::DeviceMemory(const Device& device) : on_device_(device.kind == Device::Kind::cuda) {
  if (on_device_) make_current(device.index);
}

DeviceMemory::~DeviceMemory() {
  for (const Buffer& buffer : buffers_) release(buffer.allocation);
  for (void* memory : scratch_) {
    if (on_device_) {
      release(memory);
    } else {
      ::operator delete(memory, kAlignment);
    }
  }
}

void DeviceMemory::add(const void* host, std::size_t bytes) { add(host, nullptr, bytes); }
void DeviceMemory::add_written(void* host, std::size_t bytes) { add(host, host, bytes); }

void DeviceMemory::add(const void* host, void* written, std::size_t bytes) {
  if (!on_device_ || bytes == 0) return;
  constexpr std::uintptr_t kPage = 256;
  void* allocation = allocate(bytes + 2 * kPage);
  const auto address = reinterpret_cast<std::uintptr_t>(allocation);
  const std::uintptr_t gap = (reinterpret_cast<std::uintptr_t>(host) - address) % kPage;
  auto* device = static_cast<std::byte*>(allocation) + gap;
  buffers_.push_back({static_cast<const std::byte*>(host), static_cast<std::byte*>(written), bytes,
                      allocation, device});
  transfer(device, host, bytes);
}

Workspace DeviceMemory::scratch(std::size_t bytes) {
  const std::size_t room = bytes == 0 ? 1 : bytes;
  scratch_.reserve(scratch_.size() + 1);
  scratch_.push_back(on_device_ ? allocate(room) : ::operator new(room, kAlignment));
  return {scratch_.back(), bytes};
}

void DeviceMemory::wait() const {
  if (on_device_) synchronize();
}

void DeviceMemory::fetch() {
  if (!on_device_) return;
  wait();
  for (const Buffer& buffer : buffers_) {
    if (buffer.written != nullptr) transfer(buffer.written, buffer.device, buffer.bytes);
  }
}

void* DeviceMemory::at(const void* host) const {
  const auto* byte = static_cast<const std::byte*>(host);
  if (!on_device_ || host == nullptr) return const_cast<std::byte*>(byte);
  for (const Buffer& buffer : buffers_) {
    if (byte >= buffer.host && byte < buffer.host + buffer.bytes) {
      return buffer.device + (byte - buffer.host);
    }
  }
  // An empty tensor may point just past a buffer; nothing reads it.
  return nullptr;
}

}  // namespace vidsparse::tools
