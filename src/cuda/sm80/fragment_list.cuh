#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/ptx/special.cuh"

namespace vidsparse::cuda::sm80 {

/// A fragment to copy from the raster.
struct alignas(16) ListedFragment {
  std::int32_t first_token;  ///< of slot 0
  std::uint32_t place;       ///< its number, and in the lowest three bits the segment
  std::uint64_t valid;       ///< bit s: slot s

  __device__ static ListedFragment of(const Side& side, int number, const uint4& entry) {
    const int index = KeyFragment::map(entry.y);
    const Raster& segment = side.segments[index];
    const int row = KeyFragment::frame(entry.y) * segment.grid.h + KeyFragment::height(entry.y);
    return {segment.first_token + row * segment.grid.w + static_cast<int>(entry.x),
            static_cast<std::uint32_t>(number) << 3 | static_cast<std::uint32_t>(index),
            entry.z | static_cast<std::uint64_t>(entry.w) << 32};
  }

  __device__ bool whole() const { return valid == ~std::uint64_t{0}; }
  __device__ int segment() const { return static_cast<int>(place & 7); }
  __device__ int number() const { return static_cast<int>(place >> 3); }
};
static_assert(Side::kMaxSegments <= 8);

/// What a list is made of: a row of a bitmap over tiles, and the table of their fragments.
struct ListSource {
  const std::uint32_t* mask;
  const KeyFragment* table;
};

/// The fragments of the tiles that a bitmap row names, ascending, without empty ones. A few dozen
/// at a time are written to shared memory: what loads and products wait for is then one read.
template <int Capacity>
class FragmentList {
 public:
  /// `side` is whose tiles these are; a tile has `per_tile` fragments.
  __device__ FragmentList(const Side& side, const Divider& per_tile, int fragments, char* shared)
      : side_(side),
        per_tile_(per_tile),
        fragments_(fragments),
        listed_(reinterpret_cast<ListedFragment*>(shared)) {}

  /// From the first fragment again; the next one comes after a barrier.
  __device__ void restart() { scanned_ = count_ = at_ = 0; }

  /// The next fragment of what `source` returns; false when there are no more. All threads of the
  /// block ask together.
  template <class Source>
  __device__ bool next(ListedFragment& fragment, Source&& source) {
    if (at_ == count_ && !refill(source())) return false;
    fragment = listed_[at_++];
    return true;
  }

 private:
  static_assert(Capacity >= 32);  // what one look may find

  /// Every warp looks, so that each knows how far the list goes; the first one writes.
  __device__ bool refill(const ListSource& source) {
    const int lane = ptx::lane_index();
    __syncthreads();  // all have read the former list
    at_ = count_ = 0;
    while (scanned_ < fragments_) {
      const int number = scanned_ + lane;
      const int tile = per_tile_.quotient(number);
      const bool named =
          number < fragments_ && (__ldg(source.mask + (tile >> 5)) >> (tile & 31) & 1) != 0;
      uint4 entry = make_uint4(0, 0, 0, 0);
      if (named) entry = __ldg(reinterpret_cast<const uint4*>(source.table + number));
      const bool listed = (entry.z | entry.w) != 0;
      const std::uint32_t all = __ballot_sync(~0U, listed);
      if (count_ + __popc(all) > Capacity) break;
      if (listed && threadIdx.x < 32) {
        listed_[count_ + __popc(all & ((1U << lane) - 1))] =
            ListedFragment::of(side_, number, entry);
      }
      count_ += __popc(all);
      scanned_ += 32;
    }
    __syncthreads();
    return count_ > 0;
  }

  const Side& side_;
  const Divider& per_tile_;
  int fragments_;
  ListedFragment* listed_;
  int scanned_ = 0;  // fragments looked at
  int count_ = 0;    // in the list
  int at_ = 0;       // of those, handed out
};

}  // namespace vidsparse::cuda::sm80
