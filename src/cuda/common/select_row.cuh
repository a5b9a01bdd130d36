#pragma once

#include <cstdint>

#include "cuda/common/score_key.cuh"
#include "cuda/common/split.cuh"

// One row of scores, one warp: the exact top k, the row of the bitmap, the softmax. All lanes call.

namespace vidsparse::cuda {

inline constexpr std::uint32_t kAllLanes = 0xFFFFFFFFU;

/// The keys of a row, and which tiles may be chosen: bit t%32 of word t/32.
struct ScoreRow {
  std::uint32_t* keys;              ///< [tiles], in shared memory or not
  int tiles;                        ///< N_k
  const std::uint32_t* present;     ///< non-empty tiles; zero beyond the last tile
  const std::uint32_t* candidates;  ///< those of them the top k is chosen from
  bool restricted;                  ///< not all that are present are candidates

  __device__ bool is_candidate(int tile) const {
    return !restricted || ((candidates[tile / 32] >> (tile % 32)) & 1U) != 0;
  }
};

/// What a first pass tells of a row.
struct RowRange {
  std::uint32_t highest;        ///< of all tiles: kNoScore if none is present
  bool has_nan;                 ///< among all tiles
  std::uint32_t candidate_low;  ///< of the candidates, if there are any
  std::uint32_t candidate_high;
};

__device__ inline RowRange range_of(const ScoreRow& row, int lane) {
  RowRange range = {kNoScore, false, 0xFFFFFFFFU, kNoScore};
  for (int tile = lane; tile < row.tiles; tile += 32) {
    const std::uint32_t key = row.keys[tile];
    range.highest = max(range.highest, key);
    range.has_nan |= key == kNanScore;
    if (key == kNoScore || !row.is_candidate(tile)) continue;
    range.candidate_low = min(range.candidate_low, key);
    range.candidate_high = max(range.candidate_high, key);
  }
  range.highest = __reduce_max_sync(kAllLanes, range.highest);
  range.has_nan = __any_sync(kAllLanes, range.has_nan) != 0;
  range.candidate_low = __reduce_min_sync(kAllLanes, range.candidate_low);
  range.candidate_high = __reduce_max_sync(kAllLanes, range.candidate_high);
  return range;
}

/// Selected are all keys above the threshold, and of those equal to it the first `ties`.
struct Cut {
  std::uint32_t threshold;
  int ties;
};

template <bool kRestricted>
__device__ int count_from(const ScoreRow& row, std::uint32_t least, int lane) {
  int count = 0;
#pragma unroll 8
  for (int tile = lane; tile < row.tiles; tile += 32) {
    const bool above = row.keys[tile] >= least;
    count += kRestricted ? above && row.is_candidate(tile) : above;
  }
  return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(count)));
}

/// The cut that keeps exactly `k` of `candidates` > k > 0 tiles: bisection between the lowest and
/// the highest key, ended early where a threshold happens to keep k.
template <bool kRestricted>
__device__ Cut bisect(const ScoreRow& row, const RowRange& range, int k, int lane) {
  std::uint32_t low = range.candidate_low;        // count_from(low) >= k
  std::uint32_t high = range.candidate_high + 1;  // count_from(high) = above < k
  int above = 0;
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const int count = count_from<kRestricted>(row, middle, lane);
    if (count == k) return {middle - 1, 0};
    if (count > k) {
      low = middle;
    } else {
      high = middle;
      above = count;
    }
  }
  return {low, k - above};
}

__device__ inline Cut find_cut(const ScoreRow& row, const RowRange& range, int candidates, int k,
                               int lane) {
  if (candidates <= k) return {kNoScore, 0};
  if (k == 0) return {0xFFFFFFFFU, 0};
  return row.restricted ? bisect<true>(row, range, k, lane) : bisect<false>(row, range, k, lane);
}

/// Writes a bitmap row of `words` 32-bit words: the selection, all tiles that are present but no
/// candidates (exempt ones), and those of `always` (may be null) that are present.
__device__ inline void write_bits(const ScoreRow& row, const Cut& cut, const std::uint32_t* always,
                                  std::uint32_t* mask, int words, int lane) {
  int ties = cut.ties;
  for (int first = 0; first < words; first += 32) {
    std::uint32_t mine = 0;  // word first + lane
    const int last = min(32, words - first);
    for (int i = 0; i < last; ++i) {
      const int tile = (first + i) * 32 + lane;
      std::uint32_t key = kNoScore;
      if (tile < row.tiles && row.is_candidate(tile)) key = row.keys[tile];
      std::uint32_t bits = __ballot_sync(kAllLanes, key > cut.threshold);
      if (ties > 0) {
        std::uint32_t equal = __ballot_sync(kAllLanes, key == cut.threshold);
        const int many = __popc(equal);
        for (int excess = many - ties; excess > 0; --excess) equal ^= 0x80000000U >> __clz(equal);
        ties -= min(many, ties);
        bits |= equal;
      }
      if (i == lane) mine = bits;
    }
    if (lane >= last) continue;
    const std::uint32_t present = row.present[first + lane];
    if (row.restricted) mine |= present & ~row.candidates[first + lane];
    if (always != nullptr) mine |= always[first + lane] & present;
    mask[first + lane] = mine;
  }
}

/// The bitmap row of a Plain query tile: everything that is present.
__device__ inline void write_all_bits(const ScoreRow& row, std::uint32_t* mask, int words,
                                      int lane) {
  for (int word = lane; word < words; word += 32) mask[word] = row.present[word];
}

struct SoftmaxRow {
  float max;  ///< NaN if a score is; -inf without weight
  float sum;
};

/// Turns the first `columns` keys of a row into weights exp(score - max), split(), 0 where there is
/// no score.
__device__ inline SoftmaxRow softmax(const ScoreRow& row, const RowRange& range, int columns,
                                     int lane) {
  const float infinity = __uint_as_float(0x7F800000U);
  constexpr float kLog2E = 1.44269504f;
  float max = -infinity;
  if (range.highest != kNoScore) max = score_of(range.has_nan ? kNanScore : range.highest);
  const bool weightless = max == -infinity;
  float sum = 0;
  for (int tile = lane; tile < columns; tile += 32) {
    const std::uint32_t key = row.keys[tile];
    float weight = 0;
    if (key != kNoScore && !weightless) weight = exp2f((score_of(key) - max) * kLog2E);
    sum += weight;
    row.keys[tile] = split(weight);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
  return {max, sum};
}

}  // namespace vidsparse::cuda
