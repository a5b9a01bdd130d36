#pragma once

#include <cstdint>

#include "cuda/common/score_key.cuh"
#include "cuda/common/select_strip.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/load.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/warp_mma.cuh"

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

/// Warps take 16 key tiles each and all query rows, so that each row of kc is one warp's only: it
/// comes straight to registers, 32 numbers of the depth at a time, those that follow on their way
/// meanwhile. Products may take the depth in any order: the one in which a lane's numbers lie
/// together in memory. Query rows lie in shared memory in that order.
template <class Strip>
class SelectScores {
 public:
  __device__ explicit SelectScores(const Strip& strip) : strip_(strip) {}

  /// Begins with what other threads wrote visible, ends with all threads done.
  __device__ void run() {
    const int units = Config::score_columns(strip_.tiles) / 16;
    const char* kc =
        reinterpret_cast<const char*>(strip_.of_head(strip_.p.pooled.kc)) + strip_.lane % 4 * 16;
    const char* rows[2];
    Keys keys[2];
    locate(rows, kc, strip_.warp);
    load_keys(keys[0], rows, 0);
    stage_queries();
    __syncthreads();
    for (int unit = strip_.warp; unit < units; unit += Config::kWarps) {
      Sums sums = {};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part == kParts - 1) locate(rows, kc, unit + Config::kWarps);
        load_keys(keys[(part + 1) % 2], rows, (part + 1) % kParts);
        __syncwarp();  // or the compiler asks for them after the products
        add_part(sums, keys[part % 2], part);
      }
      store_scores(sums, unit);
    }
    __syncthreads();
  }

 private:
  using Config = typename Strip::Config;
  static constexpr int kD = Config::kD;
  static constexpr int kParts = kD / 32;
  static_assert(kParts % 2 == 0);

  /// Of all rows and two times eight tiles: high * high, then the sum of high * low and low * high.
  using Sums = float[Config::kHeights][2][2][4];

  /// Of 32 numbers of the depth, lane (g, t) = (lane / 4, lane % 4) holds those from 8 t of tiles g
  /// and 8 + g.
  struct Keys {
    uint4 high[2];
    uint4 low[2];
  };

  /// Past the last tile come copies of it, which are no candidates.
  __device__ void locate(const char* (&rows)[2], const char* kc, int unit) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tile = min(unit * 16 + i * 8 + strip_.lane / 4, max(strip_.tiles, 1) - 1);
      rows[i] = ptx::advance(kc, tile, kD * 4);
    }
  }
  __device__ static void load_keys(Keys& keys, const char* const (&rows)[2], int part) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      keys.high[i] = ptx::load_16(rows[i] + part * 64);
      keys.low[i] = ptx::load_16(rows[i] + part * 64 + kD * 2);
    }
  }

  /// Of each 16 words, 32 numbers, words 4 t + i go to 4 i + t.
  __device__ void stage_queries() const {
    constexpr int kPieces = kD / 4;  // of four words, of a row
    constexpr int kApart = Config::kThreads / kPieces;
    constexpr int kCopies = (Config::kRows + kApart - 1) / kApart;
    static_assert(Config::kThreads % kPieces == 0);
    const int own = static_cast<int>(threadIdx.x) / kPieces;
    const int at = static_cast<int>(threadIdx.x) % kPieces;
    uint4 words[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      words[i] = ptx::load_16(strip_.query_row(own + i * kApart) + at * 4);
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = own + i * kApart;
      if (Config::kRows % kApart != 0 && row >= Config::kRows) break;
      std::uint32_t* to = strip_.shared.rows[row] + at / 4 * 16 + at % 4;
      to[0] = words[i].x;
      to[4] = words[i].y;
      to[8] = words[i].z;
      to[12] = words[i].w;
    }
  }

  __device__ void add_part(Sums& sums, const Keys& keys, int part) const {
    const std::uint32_t at = ptx::shared_address(
        &strip_.shared.rows[strip_.lane % 16][part * 16 + (strip_.lane >> 4) * 4]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t high[2][2], low[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        high[i][0] = half == 0 ? keys.high[i].x : keys.high[i].z;
        high[i][1] = half == 0 ? keys.high[i].y : keys.high[i].w;
        low[i][0] = half == 0 ? keys.low[i].x : keys.low[i].z;
        low[i][1] = half == 0 ? keys.low[i].y : keys.low[i].w;
      }
#pragma unroll
      for (int h = 0; h < Config::kHeights; ++h) {
        std::uint32_t first[4], rest[4];
        const std::uint32_t query = at + h * 16 * Config::kPitch * 4 + half * 32;
        ptx::load_matrices(first, query);
        ptx::load_matrices(rest, query + kD * 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply(sums[h][i][0], first, high[i][0], high[i][1]);
          multiply(sums[h][i][1], first, low[i][0], low[i][1]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply(sums[h][i][1], rest, high[i][0], high[i][1]);
      }
    }
  }

  __device__ void store_scores(const Sums& sums, int unit) const {
    const std::uint32_t there = strip_.present[unit / 2] >> (unit % 2 * 16 + strip_.lane % 4 * 2);
    float all = 0;
#pragma unroll
    for (int h = 0; h < Config::kHeights; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float scores[4];
        std::uint32_t keys[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores[j] = fmaf(sums[h][i][0][j] + sums[h][i][1][j], strip_.p.scale, 0.0f);
          keys[j] = ((there >> (i * 8 + j % 2)) & 1U) != 0 ? key_of_number(scores[j]) : kNoScore;
        }
        all += (scores[0] + scores[1]) + (scores[2] + scores[3]);
        std::uint32_t* to =
            strip_.score_row(h * 16 + strip_.lane / 4) + unit * 16 + i * 8 + strip_.lane % 4 * 2;
        *reinterpret_cast<uint2*>(to) = make_uint2(keys[0], keys[1]);
        *reinterpret_cast<uint2*>(to + 8 * strip_.pitch) = make_uint2(keys[2], keys[3]);
      }
    }
    if (all != all) mend_scores(there, unit);
  }

  /// Where one of the scores that a lane has stored may be NaN.
  __device__ void mend_scores(std::uint32_t there, int unit) const {
#pragma unroll 1
    for (int i = 0; i < Config::kRows / 8 * 4; ++i) {
      const int row = i / 4 * 8 + strip_.lane / 4;
      const int column = i / 2 % 2 * 8 + i % 2;
      const int tile = unit * 16 + column + strip_.lane % 4 * 2;
      std::uint32_t& key = strip_.score_row(row)[tile];
      const float score = score_of_any(key);
      if (((there >> column) & 1U) == 0 || score == score) continue;
      key = key_of(plain_product<kD>(strip_.query_row(row),
                                     strip_.of_head(strip_.p.pooled.kc) + std::int64_t{tile} * kD) *
                   strip_.p.scale);
    }
  }

  const Strip& strip_;
};

}  // namespace vidsparse::cuda
