#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"
#include "cuda/common/pooled_planes.hpp"
#include "cuda/common/select_config.hpp"
#include "cuda/common/select_row.cuh"
#include "cuda/common/split.cuh"
#include "cuda/common/tensor.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/warp_mma.cuh"

namespace vidsparse::cuda {

struct SelectParameters {
  Side query;
  Side key;
  PooledPlanes pooled;
  Tensor<float> oc;          ///< [B, H, Nq, D]; absent: scores and selection only
  Tensor<float> coarse_max;  ///< [B, H, Nq], optional
  Tensor<float> coarse_sum;
  std::uint32_t* mask;  ///< in 32-bit words
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

// Where infinities or NaN did not survive splitting. Not inlined: rare, and long.

/// Number `d` of a split row.
template <int kD>
__device__ inline float number_of(const std::uint32_t* row, int d) {
  return joined(row[d / 2], row[(kD + d) / 2], d % 2 != 0);
}

/// qc . kc of one query and one key tile.
template <int kD>
__device__ __noinline__ float plain_product(const std::uint32_t* q, const std::uint32_t* k) {
  float sum = 0;
  for (int d = 0; d < kD; ++d) sum = fmaf(number_of<kD>(q, d), number_of<kD>(k, d), sum);
  return sum;
}

/// The sum over the tiles that are present of a row's weights times column d of vc.
template <int kD>
__device__ __noinline__ float plain_coarse(const std::uint32_t* weights,
                                           const std::uint32_t* values, int d,
                                           const std::uint32_t* present, int tiles) {
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    if (((present[tile / 32] >> (tile % 32)) & 1U) == 0) continue;
    const std::uint32_t* pair = weights + weight_word(tile / 2);
    sum = fmaf(joined(pair[0], pair[8], tile % 2 != 0),
               number_of<kD>(values + std::int64_t{tile} * kD, d), sum);
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
  static_assert(128 % kChunk == 0);

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

  __device__ std::uint32_t* score_row(int row) const {
    return scores_ + static_cast<std::int64_t>(row) * pitch_;
  }
  /// Rows past the last stand for it: their results go nowhere.
  __device__ const std::uint32_t* query_row(int row) const {
    const std::int64_t tile = first_ + min(row, rows_ - 1);
    return p_.pooled.qc + ((std::int64_t{batch_} * p_.heads + head_) * p_.query.tiles + tile) * kD;
  }
  /// The rows of this head's keys in kc or vc.
  __device__ const std::uint32_t* of_head(const std::uint32_t* pooled) const {
    const std::int64_t plane = std::int64_t{batch_} * (p_.heads / p_.group) + head_ / p_.group;
    return pooled + plane * tiles_ * kD;
  }
  /// Where this lane's row of a matrix for load_matrices lies: of the 8 it gives addresses of by
  /// `across` words, and by `down`.
  __device__ int lane_words(int row, int across, int down) const {
    return row + ((lane_ >> 3) & 1) * across + (lane_ >> 4) * down;
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
      if (i < count) fetch(i, i % kParts, shared_.stages[i]);
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
          fetch(i + kAhead, (slot + kAhead) % kParts, shared_.stages[(slot + kAhead) % kStages]);
        }
        ptx::commit_copies();
        work(i, slot % kParts, shared_.stages[slot]);
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
    std::uint32_t* staged = shared_.stages[0];
    RowCopies<Config::kRows, kD, kPitch>(query_row(0), rows_ - 1).ask(staged, 0, 0);
    ptx::wait_copies();
    __syncthreads();
    const int row = warp_ % Config::kHeights * 16 + lane_ % 8;
    const std::uint32_t at =
        ptx::shared_address(staged + row * kPitch + lane_words(0, 8 * kPitch, 4));
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      ptx::load_matrices(queries.high[k], at + k * 32);
      ptx::load_matrices(queries.low[k], at + k * 32 + kD * 2);
    }
    __syncthreads();
  }

  __device__ void score() {
    constexpr int kDepth = Config::kKeyDepth;
    Queries queries;
    load_queries(queries);
    const RowCopies<kChunk, kDepth, Config::kKeyPitch> copies(of_head(p_.pooled.kc), tiles_ - 1);
    const int own = warp_ / Config::kHeights * 8;  // of a chunk's tiles
    // Two matrices of the high parts, two of the low ones.
    const int at = (own + lane_ % 8) * Config::kKeyPitch + lane_words(0, 4, kDepth / 2);
    float sums[3][4];  // high * high, high * low, low * high: chains that do not wait
    for_each_stage((tiles_ + kChunk - 1) / kChunk * Config::kParts,
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

  __device__ static void multiply(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                  std::uint32_t b1) {
    ptx::mma_m16n8k16<__nv_bfloat16>(sum[0], sum[1], sum[2], sum[3], a, b0, b1);
  }

  /// Scores of eight tiles from `first`, which may lie beyond the last one, in the words that fill
  /// a bitmap's row up to 128 tiles.
  __device__ void store_scores(const float (&sums)[3][4], int first) {
    const int row = warp_ % Config::kHeights * 16 + lane_ / 4;
    const int tile = first + lane_ % 4 * 2;
    const std::uint32_t there = present_[first / 32] >> (tile % 32);
    std::uint32_t keys[4];
    float scores[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = fmaf(sums[0][i] + (sums[1][i] + sums[2][i]), p_.scale, 0.0f);
      keys[i] = ((there >> (i % 2)) & 1U) != 0 ? key_of_number(scores[i]) : kNoScore;
    }
    const float all = (scores[0] + scores[1]) + (scores[2] + scores[3]);
    if (all != all) mend_scores(scores, keys, there, row, tile);
    *reinterpret_cast<uint2*>(score_row(row) + tile) = make_uint2(keys[0], keys[1]);
    *reinterpret_cast<uint2*>(score_row(row + 8) + tile) = make_uint2(keys[2], keys[3]);
  }

  /// Where one of a lane's four scores may be NaN.
  __device__ void mend_scores(const float (&scores)[4], std::uint32_t (&keys)[4],
                              std::uint32_t there, int row, int tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (((there >> (i % 2)) & 1U) == 0 || scores[i] == scores[i]) continue;
      keys[i] = key_of(plain_product<kD>(query_row(row + i / 2 * 8),
                                         of_head(p_.pooled.kc) + std::int64_t{tile + i % 2} * kD) *
                       p_.scale);
    }
  }

  __device__ void finish_rows() {
    RowSetting setting = {
        (tiles_ + 31) / 32, p_.row_words, present_, candidates_, 0, false, p_.top_k};
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
      const SoftmaxRow row = softmax(score_row(r), Config::score_columns(tiles_), lane_);
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
    Cut cut;
    if (setting.steps <= Config::kFewSteps) {
      cut = find_cut(setting, RegisterRow<Config::kFewSteps>(setting, keys, lane_));
    } else if (setting.steps <= Config::kManySteps) {
      cut = find_cut(setting, RegisterRow<Config::kManySteps>(setting, keys, lane_));
    } else {
      cut = find_cut(setting, MemoryRow(setting, keys, lane_));
    }
    write_bits(setting, keys, cut, always, mask, lane_);
  }

  __device__ void coarse() {
    constexpr int kTiles = Config::kValueTiles;
    const RowCopies<kTiles, kD, Config::kPitch> copies(of_head(p_.pooled.vc), tiles_ - 1);
    // Of 16 tiles and a column of eight: two matrices of the high parts, two of the low ones.
    const int at = lane_ % 8 * Config::kPitch + lane_words(0, 8 * Config::kPitch, kD / 2) +
                   warp_ / Config::kHeights * Config::kEights * 4;
    float out[Config::kEights][4] = {};
    for_each_stage((tiles_ + kTiles - 1) / kTiles,
                   [&](int i, int, std::uint32_t* stage) { copies.ask(stage, i * kTiles, 0); },
                   [&](int i, int, const std::uint32_t* stage) {
                     // Tensor cores cut sums off, so a stage's is taken apart and added by
                     // rounding.
                     float sums[Config::kEights][4] = {};
#pragma unroll
                     for (int k = 0; k < kTiles; k += 16) {
                       add_tiles(sums, i * kTiles + k,
                                 ptx::shared_address(stage + at + k * Config::kPitch));
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
  __device__ void add_tiles(float (&sums)[Config::kEights][4], int first, std::uint32_t staged) {
    const std::uint32_t* weights =
        score_row(warp_ % Config::kHeights * 16 + lane_ / 4) + first + lane_ % 4;
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t* word = weights + i % 2 * 8 * pitch_ + i / 2 * 4;
      high[i] = word[0];
      low[i] = word[8];
    }
#pragma unroll
    for (int eight = 0; eight < Config::kEights; ++eight) {
      std::uint32_t value[4];
      ptx::load_matrices_transposed(value, staged + eight * 16);
      multiply(sums[eight], high, value[0], value[1]);
      multiply(sums[eight], high, value[2], value[3]);
      multiply(sums[eight], low, value[0], value[1]);
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
            sum = plain_coarse<kD>(score_row(row), of_head(p_.pooled.vc), d, present_, tiles_);
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
