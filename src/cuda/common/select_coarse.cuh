#pragma once

#include <cstdint>

#include "cuda/common/select_row.cuh"
#include "cuda/common/select_strip.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/load.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/warp_mma.cuh"

// The coarse output of a strip whose score rows are weights by now.

namespace vidsparse::cuda {

/// The sum over the tiles that are present of a row's weights times column d of vc,
/// where infinities or NaN did not survive splitting. Not inlined: rare, and long.
template <int kD>
__device__ __noinline__ float plain_coarse(const std::uint32_t* weights,
                                           const std::uint32_t* values, int d,
                                           const std::uint32_t* present, int tiles) {
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    if (((present[tile / 32] >> (tile % 32)) & 1U) == 0) continue;
    const int part = tile / 2 % 2;
    const std::uint32_t* quad = weights + tile % 16 / 4;
    sum = fmaf(joined(quad[weight_piece(tile / 16, part)], quad[weight_piece(tile / 16, part + 2)],
                      tile % 2 != 0),
               number_of<kD>(values + std::int64_t{tile} * kD, d), sum);
  }
  return sum;
}

template <class Strip>
class SelectCoarse {
 public:
  __device__ explicit SelectCoarse(const Strip& strip) : strip_(strip) {}

  /// Warps share the work by 32 columns and by every kSplits-th 16 key tiles, so that each value is
  /// one warp's only: it comes straight to registers, for all rows. Products may take tiles and
  /// columns in any order: the one in which a lane's lie together in memory.
  __device__ void run() {
    const int split = strip_.warp / Config::kGroups;
    const int column = strip_.warp % Config::kGroups * 32 + strip_.lane / 4 * 4;
    const int own = strip_.lane % 4 * 4;              // first of a lane's four tiles
    const int last = max(strip_.tiles, 1) - 1 - own;  // from a lane's first
    const char* from = reinterpret_cast<const char*>(strip_.of_head(strip_.p.pooled.vc)) +
                       own * kD * 4 + column * 2;
    const int steps = (strip_.tiles + 15) / 16;
    const std::uint32_t* weights = strip_.score_row(strip_.lane % 16);
    Sums out = {};
    Values values;
    Fragments now;
    load_values(values, from, split * 16, last);
    pair_up(now, values);
    for (int step = split; step < steps; step += Config::kSplits) {
      load_values(values, from, (step + Config::kSplits) * 16, last);
      __syncwarp();  // or the compiler asks for them after the products
      add_tiles(out, weights, step, now);
      pair_up(now, values);
    }
    for (int turn = 0; turn < Config::kSplits; ++turn) {
      if (turn == split) deposit(out, turn > 0);
      __syncthreads();
    }
    write_coarse();
    __syncthreads();
  }

 private:
  using Config = typename Strip::Config;
  static constexpr int kD = Config::kD;

  /// Of all rows and 32 columns: of lane (g, t) = (lane / 4, lane % 4), element [h][i][j] is row
  /// 16 h + g + 8 (j / 2), column 8 t + 4 (j % 2) + i.
  using Sums = float[Config::kHeights][4][4];

  /// What a lane holds of 16 tiles' values: of the four tiles from 4 * (lane % 4) four columns.
  struct Values {
    uint2 high[4];
    uint2 low[4];
  };

  /// The same as B fragments, of column i of each lane.
  struct Fragments {
    std::uint32_t high[4][2];
    std::uint32_t low[4][2];
  };

  /// Past the last tile come copies of it, to which rows give no weight.
  __device__ static void load_values(Values& values, const char* from, int first, int last) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = min(first + i, last);
      const char* row = ptx::advance(from, tile, kD * 4);
      values.high[i] = ptx::load_8(row);
      values.low[i] = ptx::load_8(row + kD * 2);
    }
  }

  __device__ static void pair_up(Fragments& fragments, const Values& values) {
    pair_up(fragments.high, values.high);
    pair_up(fragments.low, values.low);
  }
  __device__ static void pair_up(std::uint32_t (&columns)[4][2], const uint2 (&rows)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      columns[0][i] = __byte_perm(rows[2 * i].x, rows[2 * i + 1].x, 0x5410);
      columns[1][i] = __byte_perm(rows[2 * i].x, rows[2 * i + 1].x, 0x7632);
      columns[2][i] = __byte_perm(rows[2 * i].y, rows[2 * i + 1].y, 0x5410);
      columns[3][i] = __byte_perm(rows[2 * i].y, rows[2 * i + 1].y, 0x7632);
    }
  }

  /// Adds the weights of 16 key tiles times their values. `weights`: row lane % 16.
  __device__ void add_tiles(Sums& out, const std::uint32_t* weights, int step,
                            const Fragments& values) {
#pragma unroll
    for (int h = 0; h < Config::kHeights; ++h) {
      std::uint32_t first[4], rest[4];
      load_weights(first, weights + h * 16 * strip_.pitch, step, 0);
      load_weights(rest, weights + h * 16 * strip_.pitch, step, 2);
      // Tensor cores cut sums off, so those of 16 tiles are taken apart and added by rounding.
      float sums[4][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply(sums[i], first, values.high[i][0], values.high[i][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply(sums[i], first, values.low[i][0], values.low[i][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply(sums[i], rest, values.high[i][0], values.high[i][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[h][i][j] += sums[i][j];
      }
    }
  }

  /// Pieces `part` and the next of 16 rows' weights as an A fragment.
  __device__ void load_weights(std::uint32_t (&fragment)[4], const std::uint32_t* weights, int step,
                               int part) const {
    if constexpr (Strip::kOnChip) {
      const int word = weight_piece(step, part + (strip_.lane >> 4));
      ptx::load_matrices(fragment, ptx::shared_address(weights) + word * 4);
    } else {
      const std::uint32_t* own = weights + (strip_.lane / 4 - strip_.lane % 16) * strip_.pitch;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        fragment[i] =
            own[i % 2 * 8 * strip_.pitch + weight_piece(step, part + i / 2) + strip_.lane % 4];
      }
    }
  }

  /// Where the splits' sums meet, where the queries were.
  __device__ float* meeting_point(int row, int column) {
    return reinterpret_cast<float*>(&strip_.shared.rows[row][column]);
  }

  __device__ void deposit(const Sums& out, bool add) {
    const int column = strip_.warp % Config::kGroups * 32 + strip_.lane % 4 * 8;
#pragma unroll
    for (int h = 0; h < Config::kHeights; ++h) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        auto* to = reinterpret_cast<float4*>(
            meeting_point(16 * h + strip_.lane / 4 + j / 2 * 8, column + j % 2 * 4));
        float4 sum = make_float4(out[h][0][j], out[h][1][j], out[h][2][j], out[h][3][j]);
        if (add) {
          const float4 before = *to;
          sum.x += before.x;
          sum.y += before.y;
          sum.z += before.z;
          sum.w += before.w;
        }
        *to = sum;
      }
    }
  }

  __device__ void write_coarse() {
    for (int i = static_cast<int>(threadIdx.x); i < strip_.rows * (kD / 4); i += Config::kThreads) {
      const int row = i / (kD / 4);
      const int column = i % (kD / 4) * 4;
      const float total = strip_.shared.sum[row];
      const auto four = *reinterpret_cast<const float4*>(meeting_point(row, column));
      float sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (sums[j] != sums[j] && total != 0.0f) {
          sums[j] = plain_coarse<kD>(strip_.score_row(row), strip_.of_head(strip_.p.pooled.vc),
                                     column + j, strip_.present, strip_.tiles);
        }
        // A row without weight is 0 even over infinite values.
        sums[j] = total == 0.0f ? 0.0f : sums[j] / total;
      }
      float* to = strip_.p.oc.row(strip_.batch, strip_.first + row, strip_.head) + column;
      if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        *reinterpret_cast<float4*>(to) = make_float4(sums[0], sums[1], sums[2], sums[3]);
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = sums[j];
    }
  }

  const Strip& strip_;
};

}  // namespace vidsparse::cuda
