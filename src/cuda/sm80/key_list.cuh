#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/sm80/attend_parameters.hpp"
#include "cuda/sm80/item.cuh"

namespace vidsparse::cuda::sm80 {

/// A key fragment to attend.
struct alignas(16) ListedFragment {
  std::int32_t first_token;
  std::int32_t segment;
  std::uint64_t valid;  ///< bit s: slot s

  __device__ bool whole() const { return valid == ~std::uint64_t{0}; }
};

/// The key fragments of a query tile's bitmap row in ascending order, without empty ones. A few
/// dozen at a time are written to shared memory: what loads and products wait for is then one read.
template <class T, int Capacity>
class KeyList {
 public:
  __device__ KeyList(const AttendParameters<T>& parameters, char* shared)
      : p_(parameters), listed_(reinterpret_cast<ListedFragment*>(shared)) {}

  /// The next fragment; false when there are no more. All threads of a block ask together.
  __device__ bool next(ListedFragment& fragment) {
    if (at_ == listed_count_ && !refill()) return false;
    fragment = listed_[at_++];
    return true;
  }

 private:
  /// Every warp looks, so that each knows how far the list goes; the first one writes.
  __device__ bool refill() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Item item = Item::current(p_);
    const std::uint32_t* row =
        p_.mask + item.batch * p_.mask_batch + item.head * p_.mask_head + item.tile * p_.mask_row;
    const KeyFragment* table = p_.table + item.batch * p_.table_batch;
    __syncthreads();  // all have read the former list
    at_ = listed_count_ = 0;
    while (scanned_ < p_.key_fragments && listed_count_ <= Capacity - 32) {
      const int key = scanned_ + lane;
      const int tile = p_.fragments_per_tile.quotient(key);
      bool wanted = key < p_.key_fragments && (__ldg(row + (tile >> 5)) >> (tile & 31) & 1) != 0;
      uint4 words = make_uint4(0, 0, 0, 0);
      if (wanted) words = __ldg(reinterpret_cast<const uint4*>(table + key));
      wanted = (words.z | words.w) != 0;
      const std::uint32_t all = __ballot_sync(~0U, wanted);
      if (wanted && threadIdx.x < 32) {
        const Raster& segment = p_.key.segments[KeyFragment::segment(words.y)];
        const int token =
            segment.first_token +
            (KeyFragment::frame(words.y) * segment.grid.h + KeyFragment::height(words.y)) *
                segment.grid.w +
            static_cast<int>(words.x);
        listed_[listed_count_ + __popc(all & ((1U << lane) - 1))] = {
            token, KeyFragment::segment(words.y),
            words.z | static_cast<std::uint64_t>(words.w) << 32};
      }
      listed_count_ += __popc(all);
      scanned_ += 32;
    }
    __syncthreads();
    return listed_count_ > 0;
  }

  const AttendParameters<T>& p_;
  ListedFragment* listed_;
  int scanned_ = 0;       // key fragments looked at
  int listed_count_ = 0;  // in the list
  int at_ = 0;            // of those, handed out
};

}  // namespace vidsparse::cuda::sm80
