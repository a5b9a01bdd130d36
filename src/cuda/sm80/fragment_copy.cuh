#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/special.cuh"
#include "cuda/sm80/fragment_list.cuh"
#include "cuda/sm80/products.cuh"

namespace vidsparse::cuda::sm80 {

/// Copies fragments out of the raster into shared memory. A thread has one chunk of every
/// kRows-th row; where in its segment a slot's token lies, one lane of the warp knows.
template <int Threads, int RowBytes>
class FragmentCopy {
 public:
  __device__ explicit FragmentCopy(const Side& side) : side_(side) {}

  /// Starts the copy of `fragment` of `rows`, a head's first token, to shared address `to`. Slots
  /// that are not valid become zeros.
  __device__ void start(std::uint32_t to, const char* rows, std::int32_t token_bytes,
                        const ListedFragment& fragment) {
    if (fragment.segment() != segment_) enter(fragment.segment());
    const int thread = ptx::thread_index();
    const int lane = thread % 32;
    const int row = thread / kChunks;
    const int chunk = thread % kChunks;
    const char* from = ptx::advance(rows, fragment.first_token, token_bytes) + chunk * 16;
    to += row * RowBytes;
    const int column = (chunk ^ (row & 7)) * 16;
    if (fragment.whole()) {
#pragma unroll
      for (int first = 0; first < 64; first += kRows) {
        const int offset =
            __shfl_sync(~0U, first < 32 ? offset_low_ : offset_high_, first % 32 + row);
        ptx::copy_async_16(to + first * RowBytes + (column ^ (first & 7) * 16),
                           ptx::advance(from, offset, token_bytes));
      }
      return;
    }
    const int low = fragment.valid >> lane & 1 ? offset_low_ : -1;
    const int high = fragment.valid >> (lane + 32) & 1 ? offset_high_ : -1;
#pragma unroll 2
    for (int first = 0; first < 64; first += kRows) {
      const int offset = __shfl_sync(~0U, first < 32 ? low : high, first % 32 + row);
      const bool valid = offset >= 0;
      ptx::copy_async_16(to + first * RowBytes + (column ^ (first & 7) * 16),
                         ptx::advance(from, valid ? offset : 0, token_bytes), valid);
    }
  }

 private:
  static constexpr int kChunks = RowBytes / 16;
  static constexpr int kRows = Threads / kChunks;  // of a pass
  static_assert(kRows <= 32 && Threads % kChunks == 0);

  __device__ void enter(int index) {
    segment_ = index;
    const Raster& segment = side_.segments[index];
    const Box& box = side_.boxes[segment.line];
    const auto offset_of = [&](int slot) {
      const int dw = slot & ((1 << box.log_w) - 1);
      const int dh = slot >> box.log_w & ((1 << box.log_h) - 1);
      const int dt = slot >> (box.log_w + box.log_h);
      return (dt * segment.grid.h + dh) * segment.grid.w + dw;
    };
    const int lane = ptx::lane_index();
    offset_low_ = offset_of(lane);
    offset_high_ = offset_of(lane + 32);
  }

  const Side& side_;
  int segment_ = -1;
  int offset_low_ = 0;   // tokens from slot 0's to that of slot `lane`
  int offset_high_ = 0;  // and of slot `lane` + 32
};

}  // namespace vidsparse::cuda::sm80
