#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "vidsparse/plan.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse::tools {

/// Host buffers seen through their copies on a device: what a backend on that device is given in
/// place of host memory. On the CPU a pointer stands for itself.
class DeviceMemory {
 public:
  explicit DeviceMemory(const Device& device);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Copies a buffer to the device, with the same address modulo 256. It must outlive this.
  void add(const void* host, std::size_t bytes);
  /// The same for one that fetch() brings back.
  void add_written(void* host, std::size_t bytes);
  /// Memory for a call's workspace, not initialised, 64-byte aligned.
  Workspace scratch(std::size_t bytes);
  /// Until the device has nothing left to do. Throws std::runtime_error if work failed.
  void wait() const;
  /// Waits and brings back what was written.
  void fetch();

  /// The device's address of a byte inside one of the buffers; null stays null.
  void* at(const void* host) const;
  template <class Pointer>
  BasicTensor<Pointer> at(BasicTensor<Pointer> tensor) const {
    tensor.data = at(tensor.data);
    return tensor;
  }
  template <class Word>
  BasicMask<Word> at(BasicMask<Word> mask) const {
    mask.words = static_cast<Word*>(at(mask.words));
    return mask;
  }

 private:
  struct Buffer {
    const std::byte* host;
    std::byte* written;  // the same, or null
    std::size_t bytes;
    void* allocation;
    std::byte* device;
  };
  void add(const void* host, void* written, std::size_t bytes);

  bool on_device_;
  std::vector<Buffer> buffers_;
  std::vector<void*> scratch_;
};

}  // namespace vidsparse::tools
