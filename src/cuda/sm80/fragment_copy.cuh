#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/special.cuh"
#include "cuda/sm80/fragment_list.cuh"
#include "cuda/sm80/products.cuh"

namespace vidsparse::cuda::sm80 {

/// A tensor's rows to copy, and the shared address they go to.
struct CopiedRows {
  std::uint32_t to;
  const char* rows;  ///< a head's first token
  std::int32_t token_bytes;
};

/// Copies fragments out of the raster into shared memory. Eight threads have a row, one or two
/// chunks each. A slot's bits are coordinates, so the token of slot a | b (no bit in common) lies
/// as far from slot 0's as those of a and of b together: a thread knows where its first row lies
/// and adds what all threads add for the others.
template <int Threads, int RowBytes>
class FragmentCopy {
 public:
  __device__ explicit FragmentCopy(const Side& side) : side_(side) {}

  /// Starts the copies of `fragment` of each tensor, the one that `list` has returned last. Slots
  /// that are not valid become zeros.
  template <class List, class... Tensors>
  __device__ void start_listed(const List& list, const ListedFragment& fragment,
                               const Tensors&... tensors) {
    if (fragment.gathered()) {
      copy_gathered(list, fragment, tensors...);
    } else {
      start(fragment, tensors...);
    }
  }

  /// The same of one that is not gathered.
  template <class... Tensors>
  __device__ void start(const ListedFragment& fragment, const Tensors&... tensors) {
    const Chunk chunk;
    if (fragment.segment() != segment_) enter(fragment.segment());
    if (fragment.whole()) {
      const std::int32_t token = fragment.first_token + offset_;
      (copy_whole(chunk, token, tensors), ...);
    } else {
      (copy_valid(chunk, fragment, tensors), ...);
    }
  }

 private:
  static constexpr int kRowThreads = 8;
  static constexpr int kChunks = RowBytes / 16 / kRowThreads;  // of a thread
  static constexpr int kRows = Threads / kRowThreads;          // at a time
  static constexpr int kSteps = kRows == 16 ? 2 : 3;           // log2(64 / kRows)
  static_assert(kRows << kSteps == 64 && kChunks >= 1);

  /// A thread's first row and chunk.
  struct Chunk {
    std::uint32_t thread = static_cast<std::uint32_t>(ptx::thread_index());

    __device__ int row() const { return static_cast<int>(thread / kRowThreads); }
    __device__ std::uint32_t bytes() const { return thread % kRowThreads * 16; }
    __device__ std::uint32_t to(int in_row) const {
      return swizzled<RowBytes>(in_row, static_cast<int>(thread % kRowThreads));
    }
  };

  __device__ void copy_whole(const Chunk& chunk, std::int32_t token,
                             const CopiedRows& tensor) const {
    const char* from = ptx::advance(tensor.rows, token, tensor.token_bytes) + chunk.bytes();
    const std::uint32_t to = tensor.to + chunk.to(chunk.row());
#pragma unroll
    for (int pass = 0; pass < 1 << kSteps; ++pass) {
      const char* row_from = from + std::int64_t{further(pass)} * tensor.token_bytes;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        ptx::copy_async_16(to + pass * kRows * RowBytes + c * kRowThreads * 16,
                           row_from + c * kRowThreads * 16);
      }
    }
  }

  __device__ void copy_valid(const Chunk& chunk, const ListedFragment& fragment,
                             const CopiedRows& tensor) const {
    const std::uint32_t to = tensor.to + chunk.to(chunk.row());
#pragma unroll 1
    for (int pass = 0; pass < 1 << kSteps; ++pass) {
      const bool valid = (fragment.valid >> (chunk.row() + pass * kRows) & 1) != 0;
      const int offset = valid ? offset_ + further(pass) : 0;
      const char* from =
          ptx::advance(tensor.rows, fragment.first_token + offset, tensor.token_bytes) +
          chunk.bytes();
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        ptx::copy_async_16(to + pass * kRows * RowBytes + c * kRowThreads * 16,
                           from + c * kRowThreads * 16, valid);
      }
    }
  }

  template <class List, class... Tensors>
  __device__ void copy_gathered(const List& list, const ListedFragment& fragment,
                                const Tensors&... tensors) const {
    const Chunk chunk;
#pragma unroll 1
    for (int row = chunk.row(); row < 64; row += kRows) {
      const GatheredSlot from = list.slot(fragment, row);
      const bool valid = from.slot >= 0;
      const std::int32_t token =
          valid ? from.first_token + offset_of(side_.segments[from.segment()], from.slot) : 0;
      const auto copy = [&](const CopiedRows& tensor) {
        const char* row_from = ptx::advance(tensor.rows, token, tensor.token_bytes) + chunk.bytes();
        const std::uint32_t to = tensor.to + chunk.to(row);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          ptx::copy_async_16(to + c * kRowThreads * 16, row_from + c * kRowThreads * 16, valid);
        }
      };
      (copy(tensors), ...);
    }
  }

  /// Tokens from slot 0's to that of another.
  __device__ std::int32_t offset_of(const Raster& segment, int slot) const {
    const Box& box = side_.boxes[segment.line];
    const int dw = slot & ((1 << box.log_w) - 1);
    const int dh = slot >> box.log_w & ((1 << box.log_h) - 1);
    const int dt = slot >> (box.log_w + box.log_h);
    return (dt * segment.grid.h + dh) * segment.grid.w + dw;
  }

  /// Tokens from a thread's first row to that of a later pass.
  __device__ std::int32_t further(int pass) const {
    std::int32_t tokens = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) tokens += (pass >> i & 1) != 0 ? steps_[i] : 0;
    return tokens;
  }

  __device__ void enter(int index) {
    segment_ = index;
    const Raster& segment = side_.segments[index];
    offset_ = offset_of(segment, ptx::thread_index() / kRowThreads);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) steps_[i] = offset_of(segment, kRows << i);
  }

  const Side& side_;
  int segment_ = -1;
  std::int32_t offset_ = 0;          // tokens from slot 0's to that of this thread's first row
  std::int32_t steps_[kSteps] = {};  // and to those of slots kRows << i
};

}  // namespace vidsparse::cuda::sm80
