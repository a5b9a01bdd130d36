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

/// A fragment to copy from the raster, or one gathered of short ones: see FragmentList.
struct alignas(16) ListedFragment {
  std::int32_t first_token;  ///< of slot 0; gathered: its first piece
  std::uint32_t place;       ///< its number, and in the lowest three bits the segment; or kGathered
  std::uint64_t valid;       ///< bit s: slot s

  static constexpr std::uint32_t kGathered = 1U << 31;

  __device__ static ListedFragment of(const Side& side, int number, const uint4& entry) {
    const int index = KeyFragment::map(entry.y);
    const Raster& segment = side.segments[index];
    const int row = KeyFragment::frame(entry.y) * segment.grid.h + KeyFragment::height(entry.y);
    return {segment.first_token + row * segment.grid.w + static_cast<int>(entry.x),
            static_cast<std::uint32_t>(number) << 3 | static_cast<std::uint32_t>(index),
            entry.z | static_cast<std::uint64_t>(entry.w) << 32};
  }

  __device__ bool gathered() const { return (place & kGathered) != 0; }
  __device__ bool whole() const { return valid == ~std::uint64_t{0} && !gathered(); }
  __device__ int segment() const { return static_cast<int>(place & 7); }
  __device__ int number() const { return static_cast<int>(place >> 3); }
};
static_assert(Side::kMaxSegments <= 8);

/// A row of a gathered fragment: a slot of a listed one.
struct GatheredSlot {
  std::int32_t first_token;
  std::uint32_t place;
  std::int32_t slot;  ///< -1: none

  __device__ int segment() const { return static_cast<int>(place & 7); }
  __device__ int number() const { return static_cast<int>(place >> 3); }
};

/// What a list is made of: a row of a bitmap over tiles, and the table of their fragments.
struct ListSource {
  const std::uint32_t* mask;
  const KeyFragment* table;
};

/// The fragments of the tiles that a bitmap row names, ascending, without empty ones. A few dozen
/// at a time are written to shared memory: what loads and products wait for is then one read.
///
/// Short ones, with at most half of their slots valid, become *pieces* of up to 16 valid slots, and
/// come last of those few dozen, four pieces together as one fragment: row 16 u + r of it is valid
/// slot r of piece u.
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
  __device__ void restart() { scanned_ = counts_ = 0; }

  /// The next fragment of what `source` returns; false when there are no more. All threads of the
  /// block ask together.
  template <class Source>
  __device__ bool next(ListedFragment& fragment, Source&& source) {
    if (at() >= count()) {
      if (at() >= end() && !refill(source())) return false;
      if (at() >= count()) {
        fragment = gather(at() - count());
        counts_ += kTogether;
        return true;
      }
    }
    fragment = listed_[at()];
    counts_ += 1;
    return true;
  }

  /// What is in a row of a gathered fragment that next() returned last.
  __device__ GatheredSlot slot(const ListedFragment& fragment, int row) const {
    GatheredSlot result = {0, 0, -1};
    if ((fragment.valid >> row & 1) == 0) return result;
    const ListedFragment& from = piece(fragment.first_token + row / kPiece);
    result.first_token = from.first_token;
    result.place = from.place;
    const int rank = row % kPiece;
    const auto low = static_cast<std::uint32_t>(from.valid);
    const int in_low = __popc(low);
    result.slot = rank < in_low
                      ? find_bit(low, rank)
                      : 32 + find_bit(static_cast<std::uint32_t>(from.valid >> 32), rank - in_low);
    return result;
  }

 private:
  static_assert(Capacity == 32);       // a lane each
  static constexpr int kPiece = 16;    // slots
  static constexpr int kTogether = 4;  // pieces of a fragment

  __device__ int at() const { return counts_ & 0xFF; }
  __device__ int count() const { return counts_ >> 8 & 0xFF; }
  __device__ int end() const { return counts_ >> 16; }

  /// Pieces lie at the end of the memory, the last one first.
  __device__ ListedFragment& piece(int index) const { return listed_[Capacity - 1 - index]; }

  __device__ ListedFragment gather(int first) const {
    ListedFragment result = {first, ListedFragment::kGathered, 0};
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      if (count() + first + u >= end()) break;
      const std::uint64_t rows = (std::uint64_t{1} << __popcll(piece(first + u).valid)) - 1;
      result.valid |= rows << (u * kPiece);
    }
    return result;
  }

  /// Every warp looks, so that each knows how far the list goes; the first one writes.
  __device__ bool refill(const ListSource& source) {
    __syncthreads();  // all have read the former list
    counts_ = 0;
    while (scanned_ < fragments_ && end() <= Capacity / 2) look(source);
    __syncthreads();
    return end() > 0;
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

    const int room = Capacity - end();
    uint4 entry = make_uint4(0, 0, 0, 0);
    if (rank < tiles && lane < room && number < fragments_) {
      entry = __ldg(reinterpret_cast<const uint4*>(source.table + number));
    }
    const int valid = __popc(entry.z) + __popc(entry.w);
    std::uint32_t whole = __ballot_sync(~0U, valid > 2 * kPiece);
    std::uint32_t pieces = __ballot_sync(~0U, valid > 0 && valid <= 2 * kPiece);
    std::uint32_t second = __ballot_sync(~0U, valid > kPiece && valid <= 2 * kPiece);
    // Those there is room for.
    const std::uint32_t below = (1U << lane) - 1;
    const std::uint32_t upto = below << 1 | 1;
    const int needed = __popc((whole | pieces) & upto) + __popc(second & upto);
    const std::uint32_t fit = __ballot_sync(~0U, needed <= room);  // the first lanes
    const std::uint32_t left = (whole | pieces) & ~fit;
    whole &= fit;
    pieces &= fit;
    second &= fit;
    if (valid > 0 && (fit >> lane & 1) != 0 && threadIdx.x < 32) {
      ListedFragment fragment = ListedFragment::of(side_, number, entry);
      if (valid > 2 * kPiece) {
        listed_[count() + __popc(whole & below)] = fragment;
      } else {
        const int at = end() - count() + __popc(pieces & below) + __popc(second & below);
        if (valid > kPiece) {
          ListedFragment rest = fragment;
          fragment.valid = first_bits(fragment.valid);
          rest.valid &= ~fragment.valid;
          piece(at + 1) = rest;
        }
        piece(at) = fragment;
      }
    }
    counts_ += __popc(whole) << 8 | (__popc(whole) + __popc(pieces) + __popc(second)) << 16;
    if (left != 0) {
      scanned_ = __shfl_sync(~0U, number, __ffs(left) - 1);
    } else {
      scanned_ = tiles * parts - first_part > room ? __shfl_sync(~0U, number, room - 1) + 1
                                                   : (first_word + 32) * 32 * parts;
    }
  }

  /// The lowest kPiece set bits.
  __device__ static std::uint64_t first_bits(std::uint64_t bits) {
    const auto low = static_cast<std::uint32_t>(bits);
    const int in_low = __popc(low);
    const int last = in_low >= kPiece ? find_bit(low, kPiece - 1)
                                      : 32 + find_bit(static_cast<std::uint32_t>(bits >> 32),
                                                      kPiece - 1 - in_low);
    return bits & ((std::uint64_t{2} << last) - 1);
  }

  const Side& side_;
  const Divider& per_tile_;
  int fragments_;
  ListedFragment* listed_;
  int scanned_ = 0;  // fragments looked at
  // In the list: those that are no pieces, and these with the pieces, and how many of all have been
  // handed out, a byte each; the inner loop lacks registers.
  int counts_ = 0;
};

}  // namespace vidsparse::cuda::sm80
