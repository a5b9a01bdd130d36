#pragma once

#include <cstdint>

#include "cuda/common/list_order.hpp"

namespace vidsparse::cuda {

/// One block's part of a ListOrder: some of the planes, each by counting sort.
class ListSorter {
 public:
  static constexpr int kBuckets = 64;
  struct Shared {
    int starts[kBuckets];
    int longest;
  };

  __device__ ListSorter(const ListOrder& work, Shared& shared) : work_(work), shared_(shared) {}

  /// Called by all threads of block `block` of `blocks`.
  __device__ void run(unsigned block, unsigned blocks) {
    for (auto plane = static_cast<std::int64_t>(block); plane < work_.planes; plane += blocks) {
      __syncthreads();
      if (threadIdx.x == 0) shared_.longest = 0;
      if (threadIdx.x < kBuckets) shared_.starts[threadIdx.x] = 0;
      __syncthreads();
      std::int32_t* lengths = work_.lengths + plane * work_.tiles;
      measure(plane, lengths);
      __syncthreads();
      const auto longest = static_cast<unsigned>(shared_.longest);
      const auto bucket_of = [&](int tile) {
        const auto length = static_cast<unsigned>(lengths[tile]);
        return kBuckets - 1 - static_cast<int>(length * kBuckets / (longest + 1));
      };
      for (int tile = threadIdx.x; tile < work_.tiles; tile += blockDim.x) {
        atomicAdd(shared_.starts + bucket_of(tile), 1);
      }
      __syncthreads();
      if (threadIdx.x < 32) place(bucket_of, work_.order + plane * work_.tiles);
    }
  }

 private:
  __device__ void measure(std::int64_t plane, std::int32_t* lengths) {
    constexpr int kRows = 8;  // of a warp at a time, or it would wait for memory row by row
    const int warps = static_cast<int>(blockDim.x) / 32;
    const std::int64_t member_words = std::int64_t{work_.tiles} * work_.row_words;
    const std::uint64_t* mask = work_.mask + plane * work_.members * member_words;
    for (int first = warp() * kRows; first < work_.tiles; first += warps * kRows) {
      int sums[kRows] = {};
      for (int member = 0; member < work_.members; ++member) {
        for (int word = lane(); word < work_.row_words; word += 32) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const std::int64_t tile = min(first + i, work_.tiles - 1);
            sums[i] +=
                __popcll(__ldg(mask + member * member_words + tile * work_.row_words + word));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int sum = __reduce_add_sync(~0U, sums[i]);
        if (lane() != 0 || first + i >= work_.tiles) continue;
        lengths[first + i] = sum;
        atomicMax(&shared_.longest, sum);
      }
    }
  }

  /// By one warp: counts become places, then tiles go to theirs, the same in every run.
  template <class BucketOf>
  __device__ void place(const BucketOf& bucket_of, std::int32_t* order) {
    int before = 0;
    for (int first = 0; first < kBuckets; first += 32) {
      const int count = shared_.starts[first + lane()];
      int sum = count;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0U, sum, step);
        if (lane() >= step) sum += other;
      }
      shared_.starts[first + lane()] = before + sum - count;
      before += __shfl_sync(~0U, sum, 31);
    }
    __syncwarp();
    for (int first = 0; first < work_.tiles; first += 32) {
      const int tile = first + lane();
      const int bucket = tile < work_.tiles ? bucket_of(tile) : -1;
      const unsigned peers = __match_any_sync(~0U, bucket);
      const int rank = __popc(peers & ((1U << lane()) - 1));
      const int start = bucket >= 0 ? shared_.starts[bucket] : 0;
      __syncwarp();
      if (bucket >= 0) {
        order[start + rank] = tile;
        if (rank == 0) shared_.starts[bucket] = start + __popc(peers);
      }
      __syncwarp();
    }
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const ListOrder& work_;
  Shared& shared_;
};

}  // namespace vidsparse::cuda
