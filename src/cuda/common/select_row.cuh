#pragma once

#include <cstdint>

#include "cuda/common/score_key.cuh"
#include "cuda/common/split.cuh"
#include "cuda/ptx/math.cuh"

// One row of scores, one warp: the exact top k, the row of the bitmap, the softmax. All lanes call.
// Lane l sees to tiles l, l + 32, ...; "step" i of it is tile 32 i + l.

namespace vidsparse::cuda {

inline constexpr std::uint32_t kAllLanes = 0xFFFFFFFFU;

/// What is the same for all rows of a strip; words hold 32 tiles each.
struct RowSetting {
  int steps;                        ///< of N_k tiles; a row has a key for each of their lanes
  int words;                        ///< of a bitmap row, at least as many
  const std::uint32_t* present;     ///< non-empty tiles; zero beyond the last one
  const std::uint32_t* candidates;  ///< those of them the top k is chosen from
  int candidate_count;
  bool restricted;  ///< not all that are present are candidates
  int top_k;
};

/// The candidates' keys of a row in registers, for up to 32 * kSteps tiles; kNoScore elsewhere.
template <int kSteps>
class RegisterRow {
 public:
  __device__ RegisterRow(const RowSetting& setting, const std::uint32_t* keys, int lane) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) keys_[i] = i < setting.steps ? keys[i * 32 + lane] : kNoScore;
    if (!setting.restricted) return;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i < setting.steps && ((setting.candidates[i] >> lane) & 1U) == 0) keys_[i] = kNoScore;
    }
  }

  template <class Visit>
  __device__ void for_each(Visit&& visit) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) visit(i, keys_[i]);
  }

 private:
  std::uint32_t keys_[kSteps];
};

/// The same left where they are, for any number of tiles.
class MemoryRow {
 public:
  __device__ MemoryRow(const RowSetting& setting, const std::uint32_t* keys, int lane)
      : setting_(setting), keys_(keys), lane_(lane) {}

  template <class Visit>
  __device__ void for_each(Visit&& visit) const {
#pragma unroll 8
    for (int i = 0; i < setting_.steps; ++i) {
      std::uint32_t key = keys_[i * 32 + lane_];
      if (setting_.restricted && ((setting_.candidates[i] >> lane_) & 1U) == 0) key = kNoScore;
      visit(i, key);
    }
  }

 private:
  const RowSetting& setting_;
  const std::uint32_t* keys_;
  int lane_;
};

/// Selected are all keys above the threshold, and of those equal to it the first `ties`.
struct Cut {
  std::uint32_t threshold;
  int ties;
};

/// A key strictly between two others that are more than 1 apart: of the score halfway between
/// theirs if `by_score` and there is one, else halfway itself.
__device__ inline std::uint32_t middle_of(std::uint32_t low, std::uint32_t high, bool by_score) {
  const std::uint32_t halfway = low + (high - low) / 2;
  if (!by_score) return halfway;
  const std::uint32_t key = key_of(0.5f * score_of(low) + 0.5f * score_of(high - 1));
  return key > low && key < high ? key : halfway;
}

/// The cut that keeps exactly k of more than k > 0 candidates: bisection between the lowest and the
/// highest key, ended early where a threshold happens to keep k. Scores lie more evenly than their
/// keys, of which half stand for numbers below 1, so the first steps halve scores; as many as a row
/// of well-behaved ones takes.
template <class Row>
__device__ Cut bisect(const Row& row, int k) {
  std::uint32_t low = 0xFFFFFFFFU;  // at least k keys are >= low
  std::uint32_t high = kNoScore;    // `above` keys, fewer than k, are >= high
  row.for_each([&](int, std::uint32_t key) {
    low = min(low, key - 1);  // wraps where there is no score
    high = max(high, key);
  });
  low = __reduce_min_sync(kAllLanes, low) + 1;
  high = __reduce_max_sync(kAllLanes, high) + 1;
  int above = 0;
  for (int step = 0; high - low > 1; ++step) {
    const std::uint32_t middle = middle_of(low, high, step < 24);
    std::uint32_t mine = 0;
    row.for_each([&](int, std::uint32_t key) { ptx::count_carry(mine, key, 0U - middle); });
    const int count = static_cast<int>(__reduce_add_sync(kAllLanes, mine));
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

template <class Row>
__device__ Cut find_cut(const RowSetting& setting, const Row& row) {
  if (setting.top_k == 0) return {0xFFFFFFFFU, 0};
  if (setting.candidate_count <= setting.top_k) return {kNoScore, 0};
  return bisect(row, setting.top_k);
}

/// The first `ties` of the lanes that are set, which are taken off it.
__device__ inline std::uint32_t first_lanes(std::uint32_t lanes, int& ties) {
  const int many = __popc(lanes);
  for (int excess = many - ties; excess > 0; --excess) lanes ^= 0x80000000U >> __clz(lanes);
  ties -= min(many, ties);
  return lanes;
}

/// Writes a bitmap row: the top k, all tiles that are present but no candidates (exempt ones), and
/// those of `always` (may be null) that are present.
__device__ inline void write_bits(const RowSetting& setting, const std::uint32_t* keys,
                                  const Cut& cut, const std::uint32_t* always, std::uint32_t* mask,
                                  int lane) {
  int ties = cut.ties;
  for (int base = 0; base < setting.words; base += 32) {
    const int steps = min(32, setting.steps - base);
    std::uint32_t mine = 0;  // the word of this lane
#pragma unroll 8
    for (int i = 0; i < steps; ++i) {
      const std::uint32_t bits =
          __ballot_sync(kAllLanes, keys[(base + i) * 32 + lane] > cut.threshold);
      if (i == lane) mine = bits;
    }
    for (int i = 0; i < steps && ties > 0; ++i) {
      std::uint32_t equal = __ballot_sync(kAllLanes, keys[(base + i) * 32 + lane] == cut.threshold);
      equal = first_lanes(equal & setting.candidates[base + i], ties);
      if (i == lane) mine |= equal;
    }
    const int word = base + lane;
    if (word >= setting.words) continue;
    mine &= setting.candidates[word];
    const std::uint32_t present = setting.present[word];
    if (setting.restricted) mine |= present & ~setting.candidates[word];
    if (always != nullptr) mine |= always[word] & present;
    mask[word] = mine;
  }
}

/// The bitmap row of a Plain query tile: everything that is present.
__device__ inline void write_all_bits(const RowSetting& setting, std::uint32_t* mask, int lane) {
  for (int word = lane; word < setting.words; word += 32) mask[word] = setting.present[word];
}

struct SoftmaxRow {
  float max;  ///< NaN if a score is; -inf without weight
  float sum;
};

// A row of weights holds of each 16 tiles four pieces of four words, two tiles a word (split.cuh):
// the high parts of tiles 4 i and 4 i + 1, of 4 i + 2 and 4 i + 3, then their low ones; which piece
// lies where goes round with the tiles, so that a warp's stores of one fall into different banks.

/// Where piece `part` of the 16 tiles from 16 * step begins.
__device__ inline int weight_piece(int step, int part) {
  return step * 16 + (part ^ ((step >> 1) & 3)) * 4;
}

/// Turns the first `columns` keys of a row, a multiple of 16, into weights exp(score - max), 0
/// where there is no score.
__device__ inline SoftmaxRow softmax(std::uint32_t* keys, int columns, int lane) {
  const float infinity = __uint_as_float(0x7F800000U);
  constexpr float kLog2E = 1.44269504f;
  auto* quads = reinterpret_cast<uint4*>(keys);
  std::uint32_t highest = kNoScore;
  bool has_nan = false;
#pragma unroll 4
  for (int i = lane; i < columns / 4; i += 32) {
    const uint4 four = quads[i];
    highest = max(highest, max(max(four.x, four.y), max(four.z, four.w)));
    has_nan |=
        four.x == kNanScore || four.y == kNanScore || four.z == kNanScore || four.w == kNanScore;
  }
  highest = __reduce_max_sync(kAllLanes, highest);
  float max = highest == kNoScore ? -infinity : score_of(highest);
  if (__any_sync(kAllLanes, has_nan)) max = score_of(kNanScore);
  // A weight is for keys above it.
  const std::uint32_t floor = max == -infinity ? 0xFFFFFFFFU : kNoScore;
  // Where the maximum is NaN, all weights are, whatever a key stands for.
  const auto weight_of = [&](std::uint32_t key) {
    const float weight = ptx::exp2_approximate((score_of_any(key) - max) * kLog2E);
    return key > floor ? weight : 0.0f;
  };
  float sum = 0;
#pragma unroll 2
  for (int base = 0; base < columns / 4; base += 32) {
    const int i = base + lane;
    const bool within = i < columns / 4;
    const uint4 four = within ? quads[i] : make_uint4(kNoScore, kNoScore, kNoScore, kNoScore);
    const float a = weight_of(four.x), b = weight_of(four.y);
    const float c = weight_of(four.z), d = weight_of(four.w);
    sum += (a + b) + (c + d);
    const SplitPair front = split_finite(a, b), back = split_finite(c, d);
    __syncwarp();  // the keys of these 128 tiles have been read
    if (!within) continue;
    keys[weight_piece(i >> 2, 0) + (i & 3)] = front.high;
    keys[weight_piece(i >> 2, 1) + (i & 3)] = back.high;
    keys[weight_piece(i >> 2, 2) + (i & 3)] = front.low;
    keys[weight_piece(i >> 2, 3) + (i & 3)] = back.low;
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
  return {max, sum};
}

}  // namespace vidsparse::cuda
