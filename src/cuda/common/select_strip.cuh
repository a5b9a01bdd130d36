#pragma once

#include <cstdint>

#include "core/check.hpp"
#include "cuda/common/geometry.cuh"
#include "cuda/common/select_row.cuh"
#include "cuda/common/split.cuh"
#include "cuda/common/tensor.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/warp_mma.cuh"

namespace vidsparse::cuda {

struct SelectParameters {
  Side query;
  Side key;
  Tensor<const float> qc, kc, vc;  ///< [B, heads, N, D]
  Tensor<float> oc;                ///< [B, H, Nq, D]; absent: scores and selection only
  Tensor<float> coarse_max;        ///< [B, H, Nq], optional
  Tensor<float> coarse_sum;
  bool aligned_k, aligned_v;  ///< rows start at multiples of 16 bytes
  std::uint32_t* mask;        ///< in 32-bit words
  const std::uint32_t* always;
  std::int64_t mask_batch, mask_head, always_batch, always_head;
  int row_words;  ///< 32-bit words of a bitmap row
  int heads;
  int group;
  int top_k;
  bool exempt;
  float scale;
  int strips;              ///< of kRows query tiles, a head
  std::int64_t items;      ///< strips of all heads and batch entries
  std::uint32_t* scratch;  ///< [blocks][kRows][pitch], where rows are not on chip
};

/// How a thread block of select is laid out. Warps stand kRows / 16 high and kWidths wide over the
/// products' results; each takes 8 key tiles of a chunk.
template <int kDepth, int kQueryRows, int kBlockThreads>
struct SelectConfig {
  static constexpr int kD = kDepth;
  static constexpr int kRows = kQueryRows;  ///< query tiles of a block
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kHeights = kRows / 16;
  static constexpr int kWidths = kWarps / kHeights;
  static constexpr int kChunk = kWidths * 8;            ///< key tiles all warps take at once
  static constexpr int kEights = kDepth / 8 / kWidths;  ///< columns of a warp's coarse output / 8
  // Bitmap words of a row up to which its keys are looked at in registers: small problems, and as
  // many as shared memory holds rows of.
  static constexpr int kFewWords = kRows == 32 ? 20 : 32;
  static constexpr int kManyWords = kRows == 32 ? 52 : 64;
  // Words from a staged row to the next. A warp's reads of kc go along rows by pairs, of vc along
  // columns; either way these spread them over all banks.
  static constexpr int kKeyPitch = kDepth / 2 + 8;
  static constexpr int kValuePitch = kDepth + 4;
  // Staged by halves of a chunk, kc by half the depth, vc by half the tiles. As many stages as
  // leave on chip 32 rows of 1440 tiles (512 threads) and two blocks of 32 rows of 520 (256
  // threads).
  static constexpr int kStages = kThreads == 512 ? 2 : 4;
  static constexpr int kStageWords = kChunk * kKeyPitch;
  static_assert(kStageWords >= kChunk / 2 * kValuePitch);

  /// One stage in use, the others under way.
  struct Shared {
    alignas(16) float stages[kStages][kStageWords];
    float sum[kRows];
    // Then present and candidate words [row_words] each, then score rows if they are on chip.
  };

  /// Words from one score row to the next: whole chunks, and 8 so that the rows of a fragment fall
  /// into different banks.
  static constexpr __host__ __device__ int score_pitch(int tiles) {
    return (tiles + kChunk - 1) / kChunk * kChunk + 8;
  }
  static std::size_t shared_bytes(int tiles, int row_words, bool on_chip) {
    return sizeof(Shared) + 2 * sizeof(std::uint32_t) * row_words +
           (on_chip ? sizeof(std::uint32_t) * kRows * score_pitch(tiles) : 0);
  }
};

// Where infinities or NaN did not survive splitting. Not inlined: rare, and long.

/// qc . kc of one query and one key tile.
template <int kD>
__device__ __noinline__ float plain_product(const float* q, const float* k) {
  float sum = 0;
  for (int d = 0; d < kD; ++d) sum = fmaf(q[d], k[d], sum);
  return sum;
}

/// The sum over the tiles that are present of a row's weights times one column of vc.
__device__ __noinline__ inline float plain_coarse(const std::uint32_t* weights, const float* column,
                                                  std::int64_t stride, const std::uint32_t* present,
                                                  int tiles) {
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    if (((present[tile / 32] >> (tile % 32)) & 1U) == 0) continue;
    sum = fmaf(joined(weights[tile]), column[tile * stride], sum);
  }
  return sum;
}

/// One thread block at work on strips of query tiles.
template <class Config>
class SelectStrip {
 public:
  __device__ SelectStrip(const SelectParameters& parameters, typename Config::Shared& shared,
                         std::uint32_t* words, std::uint32_t* scores)
      : p_(parameters),
        shared_(shared),
        present_(words),
        candidates_(words + parameters.row_words),
        scores_(scores),
        pitch_(Config::score_pitch(parameters.key.tiles)),
        tiles_(parameters.key.tiles),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run(std::int64_t item) {
    const std::int64_t pair = item / p_.strips;
    batch_ = static_cast<int>(pair / p_.heads);
    head_ = static_cast<int>(pair % p_.heads);
    first_ = static_cast<int>(item % p_.strips) * Config::kRows;
    rows_ = min(Config::kRows, p_.query.tiles - first_);
    list_tiles();
    score();
    finish_rows();
    if (p_.oc) coarse();
  }

 private:
  static constexpr int kD = Config::kD;
  static constexpr int kChunk = Config::kChunk;

  /// Which key tiles are there, and which the top k is chosen from.
  __device__ void list_tiles() {
    for (int word = warp_; word < p_.row_words; word += Config::kWarps) {
      const int tile = word * 32 + lane_;
      const bool there = tile < tiles_ && p_.key.valid_tokens(batch_, tile) > 0;
      const bool candidate = there && !(p_.exempt && p_.key.is_plain(tile));
      const std::uint32_t present = __ballot_sync(kAllLanes, there);
      const std::uint32_t candidates = __ballot_sync(kAllLanes, candidate);
      if (lane_ == 0) {
        present_[word] = present;
        candidates_[word] = candidates;
      }
    }
    __syncthreads();
  }

  /// Also asked of the places beyond the last tile that fill up its chunk.
  __device__ bool is_present(int tile) const {
    return ((present_[tile / 32] >> (tile % 32)) & 1U) != 0;
  }
  __device__ std::uint32_t* score_row(int row) const {
    return scores_ + static_cast<std::int64_t>(row) * pitch_;
  }
  /// Rows past the last stand for it: their results go nowhere.
  __device__ const float* query_row(int row) const {
    return p_.qc.row(batch_, first_ + min(row, rows_ - 1), head_);
  }
  __device__ const float* of_head(const Tensor<const float>& pooled) const {
    return pooled.row(batch_, 0, head_ / p_.group);
  }

  /// Calls work(i, staged rows) for one stage after the other, as fetch(i, staged rows) asks for
  /// them; those that follow are on their way meanwhile. Ends with all threads done.
  template <class Fetch, class Work>
  __device__ void for_each_stage(int count, Fetch&& fetch, Work&& work) {
    constexpr int kAhead = Config::kStages - 1;
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) fetch(i, shared_.stages[i]);
      ptx::commit_copies();
    }
    int slot = 0;
    for (int i = 0; i < count; ++i) {
      ptx::wait_copy_groups<kAhead - 1>();
      __syncthreads();  // this stage is there, and nobody reads the one before
      if (i + kAhead < count) fetch(i + kAhead, shared_.stages[slot == 0 ? kAhead : slot - 1]);
      ptx::commit_copies();
      work(i, shared_.stages[slot]);
      slot = slot == kAhead ? 0 : slot + 1;
    }
    __syncthreads();
  }

  /// Asks for `kColumns` columns, from `from` on, of the rows of kTiles tiles. Absent tiles are
  /// zeros.
  template <int kTiles, int kColumns, int kPitch>
  __device__ void fetch_rows(float* stage, const float* from, std::int64_t stride, bool aligned,
                             int first) {
    if (aligned) {
      fetch_rows_by<kTiles, kColumns, kPitch, 4>(stage, from, stride, first);
    } else {
      fetch_rows_by<kTiles, kColumns, kPitch, 1>(stage, from, stride, first);
    }
  }

  template <int kTiles, int kColumns, int kPitch, int kWords>
  __device__ void fetch_rows_by(float* stage, const float* from, std::int64_t stride, int first) {
    constexpr int kParts = kColumns / kWords;  // of a row
#pragma unroll(kWords == 4 ? 8 : 1)
    for (int step = 0; step < kTiles * kParts / Config::kThreads; ++step) {
      const int i = step * Config::kThreads + static_cast<int>(threadIdx.x);
      const int row = i / kParts;
      const int column = i % kParts * kWords;
      const int tile = first + row;
      const float* part = from + min(tile, tiles_ - 1) * stride + column;
      const std::uint32_t to = ptx::shared_address(stage + row * kPitch + column);
      if constexpr (kWords == 4) {
        ptx::copy_async_16(to, part, is_present(tile));
      } else {
        ptx::copy_async_4(to, part, is_present(tile));
      }
    }
  }

  /// The warp's 16 query rows as A fragments, high and low parts.
  struct Queries {
    std::uint32_t high[kD / 16][4];
    std::uint32_t low[kD / 16][4];
  };

  __device__ void load_queries(Queries& queries) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp_ % Config::kHeights * 16 + lane_ / 4 + i % 2 * 8;
      const float* from = query_row(row) + i / 2 * 8;
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) {
        const float* two = from + k * 16 + lane_ % 4 * 2;
        const SplitPair pair = split(two[0], two[1]);
        queries.high[k][i] = pair.high;
        queries.low[k][i] = pair.low;
      }
    }
  }

  __device__ void score() {
    Queries queries;
    load_queries(queries);
    const float* keys = of_head(p_.kc);
    const int own = warp_ / Config::kHeights * 8;  // of a chunk's tiles
    const int at = (own + lane_ / 4) * Config::kKeyPitch + lane_ % 4 * 2;
    float sums[3][4];  // high * high, high * low, low * high: chains that do not wait
    for_each_stage(
        core::ceil_div(tiles_, kChunk) * 2,
        [&](int i, float* stage) {
          fetch_rows<kChunk, kD / 2, Config::kKeyPitch>(
              stage, keys + i % 2 * (kD / 2), p_.kc.row_stride, p_.aligned_k, i / 2 * kChunk);
        },
        [&](int i, const float* stage) {
          if (i % 2 == 0) {
#pragma unroll
            for (auto& sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0;
            add_products<0>(queries, stage + at, sums);
          } else {
            add_products<kD / 32>(queries, stage + at, sums);
            store_scores(sums, i / 2 * kChunk + own);
          }
        });
  }

  /// 16 rows times eight tiles over half the depth, from step kFirst of 16 on; `staged` points to
  /// this lane's part of the fragments.
  template <int kFirst>
  __device__ static void add_products(const Queries& queries, const float* staged,
                                      float (&sums)[3][4]) {
#pragma unroll
    for (int k = 0; k < kD / 32; ++k) {
      const float2 front = *reinterpret_cast<const float2*>(staged + k * 16);
      const float2 back = *reinterpret_cast<const float2*>(staged + k * 16 + 8);
      const SplitPair pairs[2] = {split(front.x, front.y), split(back.x, back.y)};
      const std::uint32_t high[2] = {pairs[0].high, pairs[1].high};
      const std::uint32_t low[2] = {pairs[0].low, pairs[1].low};
      ptx::mma_m16n8k16(sums[0], queries.high[kFirst + k], high);
      ptx::mma_m16n8k16(sums[1], queries.high[kFirst + k], low);
      ptx::mma_m16n8k16(sums[2], queries.low[kFirst + k], high);
    }
  }

  /// Scores of eight tiles from `first`.
  __device__ void store_scores(const float (&sums)[3][4], int first) {
    const int row = warp_ % Config::kHeights * 16 + lane_ / 4;
    const int tile = first + lane_ % 4 * 2;
    const std::uint32_t there = present_[first / 32] >> (tile % 32);
    std::uint32_t keys[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_there = ((there >> (i % 2)) & 1U) != 0;
      float sum = sums[0][i] + (sums[1][i] + sums[2][i]);
      if (sum != sum && is_there) {
        sum = plain_product<kD>(query_row(row + i / 2 * 8),
                                of_head(p_.kc) + (tile + i % 2) * p_.kc.row_stride);
      }
      keys[i] = is_there ? key_of(sum * p_.scale) : kNoScore;
    }
    *reinterpret_cast<uint2*>(score_row(row) + tile) = make_uint2(keys[0], keys[1]);
    *reinterpret_cast<uint2*>(score_row(row + 8) + tile) = make_uint2(keys[2], keys[3]);
  }

  __device__ void finish_rows() {
    RowSetting setting = {tiles_, p_.row_words, present_, candidates_, 0, false, p_.top_k};
    for (int word = lane_; word < p_.row_words; word += 32) {
      setting.candidate_count += __popc(candidates_[word]);
      setting.restricted = setting.restricted || candidates_[word] != present_[word];
    }
    setting.candidate_count = static_cast<int>(
        __reduce_add_sync(kAllLanes, static_cast<unsigned>(setting.candidate_count)));
    setting.restricted = __any_sync(kAllLanes, setting.restricted) != 0;
    for (int r = warp_; r < rows_; r += Config::kWarps) {
      const int tile = first_ + r;
      std::uint32_t* mask = p_.mask + batch_ * p_.mask_batch + head_ * p_.mask_head +
                            static_cast<std::int64_t>(tile) * p_.row_words;
      if (p_.query.is_plain(tile)) {
        write_all_bits(setting, mask, lane_);
      } else {
        choose_row(setting, score_row(r), mask, tile);
      }
      if (!p_.oc) continue;
      __syncwarp();
      const SoftmaxRow row = softmax(score_row(r), pitch_ - 8, lane_);
      if (lane_ == 0) {
        shared_.sum[r] = row.sum;
        if (p_.coarse_max) *p_.coarse_max.row(batch_, tile, head_) = row.max;
        if (p_.coarse_sum) *p_.coarse_sum.row(batch_, tile, head_) = row.sum;
      }
    }
    __syncthreads();
  }

  /// In registers where the row fits.
  __device__ void choose_row(const RowSetting& setting, const std::uint32_t* keys,
                             std::uint32_t* mask, int tile) const {
    const std::uint32_t* always = nullptr;
    if (p_.always != nullptr) {
      always = p_.always + batch_ * p_.always_batch + head_ * p_.always_head +
               static_cast<std::int64_t>(tile) * p_.row_words;
    }
    const MemoryRow row(setting, keys, lane_);
    Cut cut;
    if (setting.words <= Config::kFewWords) {
      cut = find_cut(setting, RegisterRow<Config::kFewWords>(setting, keys, lane_));
    } else if (setting.words <= Config::kManyWords) {
      cut = find_cut(setting, RegisterRow<Config::kManyWords>(setting, keys, lane_));
    } else {
      cut = find_cut(setting, row);
    }
    write_bits(setting, row, cut, always, mask, lane_);
  }

  __device__ void coarse() {
    constexpr int kTiles = kChunk / 2;
    const float* values = of_head(p_.vc);
    float out[Config::kEights][4] = {};
    for_each_stage(
        core::ceil_div(tiles_, kTiles),
        [&](int i, float* stage) {
          fetch_rows<kTiles, kD, Config::kValuePitch>(stage, values, p_.vc.row_stride, p_.aligned_v,
                                                      i * kTiles);
        },
        [&](int i, const float* stage) {
          // Tensor cores cut sums off, so a stage's is taken apart and added by rounding.
          float sums[Config::kEights][4] = {};
#pragma unroll
          for (int k = 0; k < kTiles; k += 16) {
            add_tiles(sums, i * kTiles + k, stage + k * Config::kValuePitch);
          }
#pragma unroll
          for (int eight = 0; eight < Config::kEights; ++eight) {
#pragma unroll
            for (int j = 0; j < 4; ++j) out[eight][j] += sums[eight][j];
          }
        });
    write_coarse(out);
    __syncthreads();
  }

  /// Adds the weights of 16 key tiles from `first` times their values.
  __device__ void add_tiles(float (&sums)[Config::kEights][4], int first, const float* staged) {
    const int row = warp_ % Config::kHeights * 16 + lane_ / 4;
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 two = *reinterpret_cast<const uint2*>(score_row(row + i % 2 * 8) + first +
                                                        i / 2 * 8 + lane_ % 4 * 2);
      high[i] = __byte_perm(two.x, two.y, 0x7632);
      low[i] = __byte_perm(two.x, two.y, 0x5410);
    }
    const float* rows = staged + lane_ % 4 * 2 * Config::kValuePitch + lane_ / 4;
#pragma unroll
    for (int eight = 0; eight < Config::kEights; ++eight) {
      const float* column = rows + (warp_ / Config::kHeights * Config::kEights + eight) * 8;
      const SplitPair pairs[2] = {
          split(column[0], column[Config::kValuePitch]),
          split(column[8 * Config::kValuePitch], column[9 * Config::kValuePitch])};
      const std::uint32_t value_high[2] = {pairs[0].high, pairs[1].high};
      const std::uint32_t value_low[2] = {pairs[0].low, pairs[1].low};
      ptx::mma_m16n8k16(sums[eight], high, value_high);
      ptx::mma_m16n8k16(sums[eight], high, value_low);
      ptx::mma_m16n8k16(sums[eight], low, value_high);
    }
  }

  __device__ void write_coarse(const float (&out)[Config::kEights][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_ % Config::kHeights * 16 + lane_ / 4 + half * 8;
      if (row >= rows_) continue;
      const float total = shared_.sum[row];
      float* to = p_.oc.row(batch_, first_ + row, head_);
#pragma unroll
      for (int eight = 0; eight < Config::kEights; ++eight) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int d =
              (warp_ / Config::kHeights * Config::kEights + eight) * 8 + lane_ % 4 * 2 + i;
          float sum = out[eight][half * 2 + i];
          if (sum != sum && total != 0.0f) {
            sum = plain_coarse(score_row(row), of_head(p_.vc) + d, p_.vc.row_stride, present_,
                               tiles_);
          }
          // A row without weight is 0 even over infinite values.
          to[d] = total == 0.0f ? 0.0f : sum / total;
        }
      }
    }
  }

  const SelectParameters& p_;
  typename Config::Shared& shared_;
  std::uint32_t* present_;
  std::uint32_t* candidates_;
  std::uint32_t* scores_;
  int pitch_;
  int tiles_;
  int warp_;
  int lane_;
  int batch_ = 0;
  int head_ = 0;
  int first_ = 0;
  int rows_ = 0;
};

}  // namespace vidsparse::cuda
