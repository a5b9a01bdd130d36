#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/ptx/special.cuh"

namespace vidsparse::cuda::sm80 {

/// The position of set bit `rank` of a word with more than `rank` of them.
__device__ inline int find_bit(std::uint32_t word, int rank) {
  int at = 0;
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    const int below = __popc(word & ((1U << width) - 1));
    if (rank >= below) {
      rank -= below;
      word >>= width;
      at += width;
    }
  }
  return at;
}

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
  static_assert(Capacity == 32);  // a lane each

  /// Every warp looks, so that each knows how far the list goes; the first one writes.
  __device__ bool refill(const ListSource& source) {
    __syncthreads();  // all have read the former list
    at_ = count_ = 0;
    while (scanned_ < fragments_ && count_ <= Capacity / 2) look(source);
    __syncthreads();
    return count_ > 0;
  }

  /// Adds the next fragments of up to 1024 tiles: a lane has a word of the row, and then one of the
  /// fragments that all their bits name, so that memory is waited for twice, however few bits are
  /// set.
  __device__ void look(const ListSource& source) {
    const int lane = ptx::lane_index();
    const int parts = static_cast<int>(per_tile_.divisor);
    const int first_tile = per_tile_.quotient(scanned_);
    const int first_part = scanned_ - first_tile * parts;  // above 0: its bit is set
    const int first_word = first_tile >> 5;
    const int last_word = per_tile_.quotient(fragments_ - 1) >> 5;
    std::uint32_t word = 0;
    if (first_word + lane <= last_word) word = __ldg(source.mask + first_word + lane);
    if (lane == 0) word &= ~0U << (first_tile & 31);

    int through = __popc(word);  // bits up to and with this lane's
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const int before = __shfl_up_sync(~0U, through, apart);
      if (lane >= apart) through += before;
    }
    const int tiles = __shfl_sync(~0U, through, 31);
    const int part = lane + first_part;
    const int rank = per_tile_.quotient(part);  // of this lane's tile
    int holder = 0;                             // of its bit
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__shfl_sync(~0U, through, holder + step - 1) <= rank) holder += step;
    }
    const std::uint32_t bits = __shfl_sync(~0U, word, holder);
    const int before = __shfl_sync(~0U, through, holder) - __popc(bits);
    const int tile = (first_word + holder) * 32 + find_bit(bits, rank - before);
    const int number = tile * parts + part - rank * parts;

    const int room = Capacity - count_;
    uint4 entry = make_uint4(0, 0, 0, 0);
    if (rank < tiles && lane < room) {
      entry = __ldg(reinterpret_cast<const uint4*>(source.table + number));
    }
    const bool listed = (entry.z | entry.w) != 0;
    const std::uint32_t all = __ballot_sync(~0U, listed);
    if (listed && threadIdx.x < 32) {
      listed_[count_ + __popc(all & ((1U << lane) - 1))] = ListedFragment::of(side_, number, entry);
    }
    count_ += __popc(all);
    scanned_ = tiles * parts - first_part > room ? __shfl_sync(~0U, number, room - 1) + 1
                                                 : (first_word + 32) * 32 * parts;
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
