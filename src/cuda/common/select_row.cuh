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
  int tiles;                        ///< N_k
  int words;                        ///< of a bitmap row
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
    for (int i = 0; i < kSteps; ++i) {
      const int tile = i * 32 + lane;
      keys_[i] = tile < setting.tiles ? keys[tile] : kNoScore;
    }
    if (!setting.restricted) return;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i < setting.words && ((setting.candidates[i] >> lane) & 1U) == 0) keys_[i] = kNoScore;
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

  template <int kUnroll = 8, class Visit>
  __device__ void for_each(Visit&& visit) const {
#pragma unroll(kUnroll)
    for (int i = 0; i < setting_.words; ++i) {
      const int tile = i * 32 + lane_;
      std::uint32_t key = tile < setting_.tiles ? keys_[tile] : kNoScore;
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
    int mine = 0;
    row.for_each([&](int, std::uint32_t key) { mine += key >= middle ? 1 : 0; });
    const int count = static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(mine)));
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

/// Writes a bitmap row: the top k, all tiles that are present but no candidates (exempt ones), and
/// those of `always` (may be null) that are present.
__device__ inline void write_bits(const RowSetting& setting, const MemoryRow& row, const Cut& cut,
                                  const std::uint32_t* always, std::uint32_t* mask, int lane) {
  int ties = cut.ties;
  std::uint32_t mine = 0;  // the word of this lane among the last 32
  row.for_each<4>([&](int i, std::uint32_t key) {
    std::uint32_t bits = __ballot_sync(kAllLanes, key > cut.threshold);
    if (ties > 0) {
      std::uint32_t equal = __ballot_sync(kAllLanes, key == cut.threshold);
      const int many = __popc(equal);
      for (int excess = many - ties; excess > 0; --excess) equal ^= 0x80000000U >> __clz(equal);
      ties -= min(many, ties);
      bits |= equal;
    }
    if (i % 32 == lane) mine = bits;
    if (i % 32 != 31 && i != setting.words - 1) return;
    const int word = i / 32 * 32 + lane;
    if (word > i || word >= setting.words) return;
    const std::uint32_t present = setting.present[word];
    if (setting.restricted) mine |= present & ~setting.candidates[word];
    if (always != nullptr) mine |= always[word] & present;
    mask[word] = mine;
  });
}

/// The bitmap row of a Plain query tile: everything that is present.
__device__ inline void write_all_bits(const RowSetting& setting, std::uint32_t* mask, int lane) {
  for (int word = lane; word < setting.words; word += 32) mask[word] = setting.present[word];
}

struct SoftmaxRow {
  float max;  ///< NaN if a score is; -inf without weight
  float sum;
};

/// Turns the first `columns` keys of a row into weights exp(score - max), split(), 0 where there is
/// no score.
__device__ inline SoftmaxRow softmax(std::uint32_t* keys, int columns, int lane) {
  const float infinity = __uint_as_float(0x7F800000U);
  constexpr float kLog2E = 1.44269504f;
  std::uint32_t highest = kNoScore;
  bool has_nan = false;
#pragma unroll 8
  for (int tile = lane; tile < columns; tile += 32) {
    highest = max(highest, keys[tile]);
    has_nan |= keys[tile] == kNanScore;
  }
  highest = __reduce_max_sync(kAllLanes, highest);
  float max = highest == kNoScore ? -infinity : score_of(highest);
  if (__any_sync(kAllLanes, has_nan)) max = score_of(kNanScore);
  const bool weightless = max == -infinity;
  float sum = 0;
#pragma unroll 4
  for (int tile = lane; tile < columns; tile += 32) {
    const std::uint32_t key = keys[tile];
    float weight = ptx::exp2_approximate((score_of(key) - max) * kLog2E);
    if (key == kNoScore || weightless) weight = 0;
    sum += weight;
    keys[tile] = split(weight);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
  return {max, sum};
}

}  // namespace vidsparse::cuda
