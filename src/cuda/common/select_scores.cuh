#pragma once

#include <cstdint>

#include "cuda/common/score_key.cuh"
#include "cuda/common/select_strip.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"

// The scores of a strip, as keys in the order of selection.

namespace vidsparse::cuda {

/// qc . kc of one query and one key tile, where infinities or NaN did not survive splitting. Not
/// inlined: rare, and long.
template <int kD>
__device__ __noinline__ float plain_product(const std::uint32_t* q, const std::uint32_t* k) {
  float sum = 0;
  for (int d = 0; d < kD; ++d) sum = fmaf(number_of<kD>(q, d), number_of<kD>(k, d), sum);
  return sum;
}

template <class Strip>
class SelectScores {
 public:
  __device__ explicit SelectScores(const Strip& strip) : strip_(strip) {}

  __device__ void run() {
    constexpr int kDepth = Config::kKeyDepth;
    Queries queries;
    load_queries(queries);
    const RowCopies<kChunk, kDepth, Config::kKeyPitch> copies(strip_.of_head(strip_.p.pooled.kc),
                                                              strip_.tiles - 1);
    const int own = strip_.warp / Config::kHeights * 8;  // of a chunk's tiles
    // Two matrices of the high parts, two of the low ones.
    const int at = (own + strip_.lane % 8) * Config::kKeyPitch + lane_words(0, 4, kDepth / 2);
    float sums[3][4];  // high * high, high * low, low * high: chains that do not wait
    for_each_stage((strip_.tiles + kChunk - 1) / kChunk * Config::kParts,
                   [&](int i, int part, std::uint32_t* stage) {
                     copies.ask(stage, i / Config::kParts * kChunk, part * kDepth);
                   },
                   [&](int i, int part, const std::uint32_t* stage) {
                     if (part == 0) {
#pragma unroll
                       for (auto& sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0;
                     }
                     const std::uint32_t staged = ptx::shared_address(stage + at);
#pragma unroll
                     for (int k = 0; k < kDepth / 16; ++k) {
                       std::uint32_t key[4];
                       ptx::load_matrices(key, staged + k * 32);
                       const int step = part * (kDepth / 16) + k;
                       multiply(sums[0], queries.high[step], key[0], key[1]);
                       multiply(sums[1], queries.high[step], key[2], key[3]);
                       multiply(sums[2], queries.low[step], key[0], key[1]);
                     }
                     if (part == Config::kParts - 1)
                       store_scores(sums, i / Config::kParts * kChunk + own);
                   });
  }

 private:
  using Config = typename Strip::Config;
  static constexpr int kD = Config::kD;
  static constexpr int kChunk = Config::kChunk;
  static_assert(128 % kChunk == 0);

  /// Where this lane's row of a matrix for load_matrices lies: of the 8 it gives addresses of by
  /// `across` words, and by `down`.
  __device__ int lane_words(int row, int across, int down) const {
    return row + ((strip_.lane >> 3) & 1) * across + (strip_.lane >> 4) * down;
  }

  /// Calls work(i, part, staged rows) for one stage after the other, as fetch(i, part, staged rows)
  /// asks for them, part being i % kParts; those that follow are on their way meanwhile. Ends with
  /// all threads done.
  template <class Fetch, class Work>
  __device__ void for_each_stage(int count, Fetch&& fetch, Work&& work) {
    constexpr int kStages = Config::kStages;
    constexpr int kAhead = kStages - 1;
    constexpr int kParts = Config::kParts;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) fetch(i, i % kParts, strip_.shared.stages[i]);
      ptx::commit_copies();
    }
    for (int base = 0; base < count; base += kStages) {
#pragma unroll
      for (int slot = 0; slot < kStages; ++slot) {
        const int i = base + slot;
        if (i >= count) break;
        ptx::wait_copy_groups<kAhead - 1>();
        __syncthreads();  // this stage is there, and nobody reads the one before
        if (i + kAhead < count) {
          fetch(i + kAhead, (slot + kAhead) % kParts,
                strip_.shared.stages[(slot + kAhead) % kStages]);
        }
        ptx::commit_copies();
        work(i, slot % kParts, strip_.shared.stages[slot]);
      }
    }
    __syncthreads();
  }

  /// A thread's share of copying kColumns columns of both planes of kTiles rows to a stage.
  template <int kTiles, int kColumns, int kPitch>
  struct RowCopies {
    static constexpr int kPieces = kColumns / 8;  // of 16 bytes, of a row in one plane
    static constexpr int kRowBytes = kD * 4;
    static constexpr int kApart = Config::kThreads / (2 * kPieces);  // rows between two copies
    static constexpr int kCopies = (kTiles + kApart - 1) / kApart;
    static constexpr bool kRagged = kTiles % kApart != 0;  // the last are some threads' only
    static_assert(Config::kThreads % (2 * kPieces) == 0);

    /// `rows`: the first row there is; past `last` come copies of it.
    __device__ RowCopies(const std::uint32_t* rows, int last) {
      const int row = static_cast<int>(threadIdx.x) / (2 * kPieces);
      const int plane = static_cast<int>(threadIdx.x) / kPieces % 2;
      const int piece = static_cast<int>(threadIdx.x) % kPieces;
      from = reinterpret_cast<const char*>(rows + row * kD + plane * (kD / 2) + piece * 4);
      to = row * kPitch + (plane * kPieces + piece) * 4;
      most = last - row;
      last_too = row + (kCopies - 1) * kApart < kTiles;
    }

    /// Asks for the rows from `first` on, their columns from `column` on.
    __device__ void ask(std::uint32_t* stage, int first, int column) const {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (kRagged && i == kCopies - 1 && !last_too) break;
        const int row = min(first + i * kApart, most);
        ptx::copy_async_16(ptx::shared_address(stage + to + i * kApart * kPitch),
                           ptx::advance(from, row, kRowBytes) + column * 2);
      }
    }

    const char* from;
    int to;    ///< words from the stage's start
    int most;  ///< rows on from `from`
    bool last_too;
  };

  /// The warp's 16 query rows as A fragments, high and low parts.
  struct Queries {
    std::uint32_t high[kD / 16][4];
    std::uint32_t low[kD / 16][4];
  };

  /// By way of the stages, before anything else needs them.
  __device__ void load_queries(Queries& queries) {
    constexpr int kPitch = Config::kPitch;
    std::uint32_t* staged = strip_.shared.stages[0];
    RowCopies<Config::kRows, kD, kPitch>(strip_.query_row(0), strip_.rows - 1).ask(staged, 0, 0);
    ptx::wait_copies();
    __syncthreads();
    const int row = strip_.warp % Config::kHeights * 16 + strip_.lane % 8;
    const std::uint32_t at =
        ptx::shared_address(staged + row * kPitch + lane_words(0, 8 * kPitch, 4));
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      ptx::load_matrices(queries.high[k], at + k * 32);
      ptx::load_matrices(queries.low[k], at + k * 32 + kD * 2);
    }
    __syncthreads();
  }

  /// Scores of eight tiles from `first`, which may lie beyond the last one, in the words that fill
  /// a bitmap's row up to 128 tiles.
  __device__ void store_scores(const float (&sums)[3][4], int first) {
    const int row = strip_.warp % Config::kHeights * 16 + strip_.lane / 4;
    const int tile = first + strip_.lane % 4 * 2;
    const std::uint32_t there = strip_.present[first / 32] >> (tile % 32);
    std::uint32_t keys[4];
    float scores[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = fmaf(sums[0][i] + (sums[1][i] + sums[2][i]), strip_.p.scale, 0.0f);
      keys[i] = ((there >> (i % 2)) & 1U) != 0 ? key_of_number(scores[i]) : kNoScore;
    }
    const float all = (scores[0] + scores[1]) + (scores[2] + scores[3]);
    if (all != all) mend_scores(scores, keys, there, row, tile);
    *reinterpret_cast<uint2*>(strip_.score_row(row) + tile) = make_uint2(keys[0], keys[1]);
    *reinterpret_cast<uint2*>(strip_.score_row(row + 8) + tile) = make_uint2(keys[2], keys[3]);
  }

  /// Where one of a lane's four scores may be NaN.
  __device__ void mend_scores(const float (&scores)[4], std::uint32_t (&keys)[4],
                              std::uint32_t there, int row, int tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (((there >> (i % 2)) & 1U) == 0 || scores[i] == scores[i]) continue;
      keys[i] = key_of(
          plain_product<kD>(strip_.query_row(row + i / 2 * 8),
                            strip_.of_head(strip_.p.pooled.kc) + std::int64_t{tile + i % 2} * kD) *
          strip_.p.scale);
    }
  }

  const Strip& strip_;
};

}  // namespace vidsparse::cuda
