#pragma once

#include <cstdint>

#include "cuda/common/row_words.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/sm80/fragment_copy.cuh"
#include "cuda/sm80/fragment_list.cuh"
#include "cuda/sm80/gradient_config.hpp"
#include "cuda/sm80/gradient_epilogue.cuh"
#include "cuda/sm80/gradient_parameters.hpp"
#include "cuda/sm80/item.cuh"
#include "cuda/sm80/products.cuh"

namespace vidsparse::cuda::sm80 {

/// One fragment's gradients, by key or by query. With s = own . other^T of the scores' factors, t
/// the same of the weights' factors and p = exp(s * scale - lse), ds = p (t - delta):
/// d_scores = scale * ds . other's scores factor, and by key d_weights = p . other's weights
/// factor.
template <class T, class Config>
class GradientBlock {
 public:
  static constexpr int kD = Config::kHeadDim;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kRowTiles = Config::kRowTiles;
  static constexpr int kColumnWarps = Config::kColumnWarps;
  static constexpr int kColumns = 64 / kColumnWarps;  ///< of the scores, a warp

  __device__ GradientBlock(const GradientParameters<T>& parameters, char* shared)
      : p_(parameters),
        shared_(shared),
        address_(ptx::shared_address(shared)),
        own_(own_rows(static_cast<int>(threadIdx.x))),
        columns_(columns(static_cast<int>(threadIdx.x))),
        rows_(address_ + Config::kOther + first_row<kRowBytes>(lane_) +
              column_warp() * (Config::kExchanges ? kSumColumns * 2 : kColumns * kRowBytes)),
        list_(p_.other, p_.per_tile, p_.other_fragments, shared + Config::kList),
        copy_(p_.other) {}

  __device__ void run() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (float& value : d_scores_[m]) value = 0;
      if constexpr (Config::kByKey) {
#pragma unroll
        for (float& value : d_weights_[m]) value = 0;
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      norm_[r] = INFINITY;
      delta_[r] = 0;
    }
    if (start_own()) {
      const int members = Config::kByKey ? static_cast<int>(p_.group.divisor) : 1;
      for (int member = 0; member < members; ++member) {
        list_.restart();  // which waits until the former head's last stage has been read
        const OtherHead head = other_head(member);
        if constexpr (Config::kExchanges) {
          walk_by_turns(member, head);
        } else {
          walk(member, head);
        }
      }
    }
    ptx::wait_copy_groups<0>();
    store();
  }

 private:
  static constexpr int kSumColumns = Config::kSumColumns;
  static constexpr int kNormCount = 2 * kFragment;  ///< lse and delta of a fragment
  /// With 16 rows a warp the inner loop lacks registers: addresses are worked out anew.
  static constexpr bool kAnew = kColumnWarps == 1;
  // Lane addresses take 128 bytes more by addition (products.cuh).
  static_assert(!Config::kExchanges || kSumColumns * 2 % 128 == 0);
  using Scores = float[kRowTiles][kColumns / 2];
  using Sums = float[kRowTiles][kSumColumns / 2];

  __device__ static int first_slot() {
    return static_cast<int>(threadIdx.x) / (32 * kColumnWarps) * (16 * kRowTiles);
  }
  __device__ static int column_warp() { return static_cast<int>(threadIdx.x) / 32 % kColumnWarps; }

  /// Starts the copies of the own fragment; false if it has no valid slot.
  __device__ bool start_own() {
    const Item item = Item::current(p_.blocks, p_.per_tile);
    const KeyFragment* entry = p_.own_table + item.batch * p_.own_table_batch +
                               item.head * p_.own_table_head + item.fragment;
    const ListedFragment own =
        ListedFragment::of(p_.own, item.fragment, __ldg(reinterpret_cast<const uint4*>(entry)));
    if (own.valid == 0) return false;
    FragmentCopy<Config::kThreads, kRowBytes> copy(p_.own);
    const std::uint32_t to = address_ + Config::kOwn;
    copy.start(own,
               CopiedRows{to, p_.own_scores.head(item.batch, item.head), p_.own_scores.token_bytes},
               CopiedRows{to + Config::kFragmentBytes, p_.own_weights.head(item.batch, item.head),
                          p_.own_weights.token_bytes});
    ptx::commit_copies();
    if constexpr (!Config::kByKey) {
      const float* norms = norms_of(item.batch, item.head, item.fragment);
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        const int slot = first_slot() + lane_ / 4 + 8 * r;
        norm_[r] = without_weight_infinite(norms[slot]);
        delta_[r] = norms[kFragment + slot];
      }
    }
    return true;
  }

  /// A head of the other side: its first tokens, and by key the lse and delta of its first
  /// fragment.
  struct OtherHead {
    const char* scores;
    const char* weights;
    const float* norms;
  };

  __device__ OtherHead other_head(int member) const {
    const Item item = Item::current(p_.blocks, p_.per_tile);
    const int head = Config::kByKey ? query_head(item, member) : p_.group.quotient(item.head);
    return {p_.other_scores.head(item.batch, head), p_.other_weights.head(item.batch, head),
            Config::kByKey ? norms_of(item.batch, head, 0) : nullptr};
  }

  /// What other_head() has returned for `member`, or anew where the inner loop lacks registers.
  __device__ OtherHead current(int member, const OtherHead& head) const {
    return kAnew && Config::kByKey && kD == 128 ? other_head(member) : head;
  }

  __device__ int query_head(const Item& item, int member) const {
    return Config::kByKey ? item.head * static_cast<int>(p_.group.divisor) + member : item.head;
  }

  /// All fragments of the other side's head that belongs to the own one's; `member`: of its group.
  __device__ void walk(int member, const OtherHead& head) {
    ListedFragment fragment;
    bool more = find_other(member, fragment);
    if (more) start_other(current(member, head), 0, fragment);
    int stage = 0;
    while (more) {
      const std::uint64_t valid = fragment.valid;
      const int offset = stage * Config::kStageBytes;
      more = find_other(member, fragment);  // behind the copies
      ptx::wait_copy_groups<0>();
      __syncthreads();  // this stage is there; the other one has been read
      if constexpr (Config::kStages == 2) {
        stage ^= 1;
        if (more) start_other(current(member, head), stage, fragment);
      }
      add(offset, valid);
      if constexpr (Config::kStages == 1) {
        __syncthreads();  // all have read it
        if (more) start_other(current(member, head), 0, fragment);
      }
    }
  }

  /// The same with an exchange and one stage: the scores' factors are copied behind the sums of the
  /// weights, and the weights' factors behind the next scores.
  __device__ void walk_by_turns(int member, const OtherHead& head) {
    static_assert(Config::kStages == 1);
    ListedFragment fragment;
    bool more = find_other(member, fragment);
    if (more) start_scores(head, fragment);
    while (more) {
      ptx::wait_copy_groups<0>();
      __syncthreads();  // these scores' factors are there; the former weights' have been read
      start_weights(head, fragment);
      Scores weights;
      weigh(0, fragment.valid, weights);
      hand_over(weights, Config::kWeights);
      ptx::wait_copy_groups<0>();
      __syncthreads();  // the weights' factors are there
      Scores d_scores;
      differentiate(0, weights, d_scores);
      hand_over(d_scores, Config::kScoreGradients);
      // The two warps of the same rows; the next barriers keep what they read.
      ptx::barrier_sync(1 + first_slot() / (16 * kRowTiles), 64);
      multiply_added<T, kD>(d_scores_, exchanged(Config::kScoreGradients), rows_);
      more = find_other(member, fragment);
      __syncthreads();  // the scores' factors have been read
      if (more) start_scores(head, fragment);
      add_weighted(exchanged(Config::kWeights), 0);
    }
  }

  /// Looks the next fragment up; false if there is none.
  __device__ bool find_other(int member, ListedFragment& fragment) {
    return list_.next(fragment, [&] {
      const Item item = Item::current(p_.blocks, p_.per_tile);
      const int query = query_head(item, member);
      return ListSource{
          p_.mask + item.batch * p_.mask_batch + query * p_.mask_head + item.tile * p_.mask_row,
          p_.other_table + item.batch * p_.other_table_batch + query * p_.other_table_head};
    });
  }

  /// Asks for the rows of the fragment found last.
  __device__ void start_other(const OtherHead& head, int stage, const ListedFragment& fragment) {
    const std::uint32_t to = stage_at(stage);
    copy_.start_listed(
        list_, fragment, CopiedRows{to, head.scores, p_.other_scores.token_bytes},
        CopiedRows{to + Config::kFragmentBytes, head.weights, p_.other_weights.token_bytes});
    if constexpr (Config::kByKey) start_norms(head, stage, fragment);
    ptx::commit_copies();
  }

  /// For its scores alone, and their lse and delta.
  __device__ void start_scores(const OtherHead& head, const ListedFragment& fragment) {
    copy_.start_listed(list_, fragment,
                       CopiedRows{stage_at(0), head.scores, p_.other_scores.token_bytes});
    start_norms(head, 0, fragment);
    ptx::commit_copies();
  }

  __device__ void start_weights(const OtherHead& head, const ListedFragment& fragment) {
    copy_.start_listed(list_, fragment,
                       CopiedRows{stage_at(0) + Config::kFragmentBytes, head.weights,
                                  p_.other_weights.token_bytes});
    ptx::commit_copies();
  }

  __device__ std::uint32_t stage_at(int stage) const {
    return address_ + Config::kOther + stage * Config::kStageBytes;
  }

  __device__ void start_norms(const OtherHead& head, int stage, const ListedFragment& fragment) {
    const std::uint32_t to = stage_at(stage) + Config::kNorms;
    if (fragment.gathered()) {
      start_gathered_norms(to, head.norms, fragment);
    } else if (threadIdx.x < 32) {
      const char* norms = ptx::advance(reinterpret_cast<const char*>(head.norms), fragment.number(),
                                       kNormCount * 4);
      ptx::copy_async_16(to + lane_ * 16, norms + lane_ * 16);
    }
  }

  /// Those of a gathered fragment's rows, one of the 128 a thread.
  __device__ void start_gathered_norms(std::uint32_t to, const float* norms,
                                       const ListedFragment& fragment) const {
    static_assert(Config::kThreads == kNormCount);
    const int thread = ptx::thread_index();
    const GatheredSlot from = list_.slot(fragment, thread % kFragment);
    if (from.slot >= 0) {
      const std::int64_t at =
          std::int64_t{from.number()} * kNormCount + thread / kFragment * kFragment + from.slot;
      ptx::copy_async_4(to + thread * 4, norms + at, true);
    } else {  // as a row without weight
      reinterpret_cast<float*>(shared_ + (to - address_))[thread] =
          thread < kFragment ? INFINITY : 0.0F;
    }
  }

  __device__ const float* norms_of(int batch, int query_head, int fragment) const {
    const std::int64_t plane = std::int64_t{batch} * p_.query_heads + query_head;
    return p_.norms + (plane * p_.query_fragments + fragment) * kNormCount;
  }

  /// Rows without weight may have either infinity; with the positive one their weights are 0.
  __device__ static float without_weight_infinite(float norm) {
    return norm == -INFINITY ? INFINITY : norm;
  }

  /// One fragment's share, from the stage at `offset`, without an exchange.
  __device__ void add(int offset, std::uint64_t valid) {
    Scores weights;
    weigh(offset, valid, weights);
    if constexpr (Config::kByKey) add_weighted(packed(weights), offset);
    Scores d_scores;
    differentiate(offset, weights, d_scores);
    multiply_added<T, kD, kColumns / 16>(d_scores_, packed(d_scores), rows_ + offset);
  }

  /// The weights of a fragment, p.
  __device__ void weigh(int offset, std::uint64_t valid, Scores& weights) {
    multiply_transposed<T, kD>(weights, own_factors(0), columns_at(offset));
    const float* norms = norms_at(offset);
    each_pair([&](int m, int i) {
      float2 norm = {norm_[2 * m + i / 2 % 2], norm_[2 * m + i / 2 % 2]};
      if constexpr (Config::kByKey) {
        norm = *reinterpret_cast<const float2*>(norms + i / 4 * 8);
      }
      float(&p)[kColumns / 2] = weights[m];
      p[i] = ptx::exp2_approximate(fmaf(p[i], p_.scale_log2, -norm.x));
      p[i + 1] = ptx::exp2_approximate(fmaf(p[i + 1], p_.scale_log2, -norm.y));
    });
    // A pad's score is 0 or no number, and its weight may be infinite.
    if (~valid != 0) {
      if constexpr (Config::kByKey) {
        clear_weightless(norms, weights);
      } else {
        clear_pads(valid, weights);
      }
    }
  }

  /// The gradients of its scores, ds.
  __device__ void differentiate(int offset, const Scores& weights, Scores& d_scores) {
    multiply_transposed<T, kD>(d_scores, own_factors(1), columns_at(offset),
                               Config::kFragmentBytes);
    const float* norms = norms_at(offset);
    each_pair([&](int m, int i) {
      float2 delta = {delta_[2 * m + i / 2 % 2], delta_[2 * m + i / 2 % 2]};
      if constexpr (Config::kByKey) {
        delta = *reinterpret_cast<const float2*>(norms + kFragment + i / 4 * 8);
      }
      d_scores[m][i] = weights[m][i] * (d_scores[m][i] - delta.x);
      d_scores[m][i + 1] = weights[m][i + 1] * (d_scores[m][i + 1] - delta.y);
    });
  }

  /// The loader of the own fragment's scores' factors (0) or weights' factors (1).
  __device__ auto own_factors(int which) const {
    const std::uint32_t at = kAnew ? own_rows(thread_anew()) : own_;
    return [at, which](int k, int m, std::uint32_t(&rows)[4]) {
      ptx::load_matrices(
          rows, columns_further(at, k) + which * Config::kFragmentBytes + m * 16 * kRowBytes);
    };
  }

  __device__ std::uint32_t columns_at(int offset) const {
    return (kAnew ? columns(thread_anew()) : columns_) + offset;
  }

  /// By key, the lse of this lane's first column; its delta is kFragment further.
  __device__ const float* norms_at(int offset) const {
    return reinterpret_cast<const float*>(shared_ + Config::kOther + offset + Config::kNorms) +
           column_warp() * kColumns + (kAnew ? thread_anew() : lane_) % 4 * 2;
  }

  /// The compiler does not know that a special register is no negative number.
  __device__ static int thread_anew() {
    static_assert((Config::kThreads & (Config::kThreads - 1)) == 0);
    return ptx::thread_index() & (Config::kThreads - 1);
  }

  // Lane addresses, see products.cuh.
  __device__ std::uint32_t own_rows(int thread) const {
    const int slot = thread / (32 * kColumnWarps) * (16 * kRowTiles);
    return address_ + Config::kOwn + slot * kRowBytes + first_row<kRowBytes>(thread % 32);
  }
  __device__ std::uint32_t columns(int thread) const {
    const int column = thread / 32 % kColumnWarps * kColumns;
    return address_ + Config::kOther + column * kRowBytes + first_column<kRowBytes>(thread % 32);
  }

  template <class Visit>
  __device__ static void each_pair(Visit&& visit) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2) visit(m, i);
    }
  }

  template <class Load>
  __device__ void add_weighted(const Load& weights, int offset) {
    multiply_added<T, kD>(d_weights_, weights, rows_ + offset, Config::kFragmentBytes);
  }

  /// Makes accumulators a product's factor in registers.
  __device__ static PackedWeights<kRowTiles, kColumns> packed(const Scores& values) {
    PackedWeights<kRowTiles, kColumns> result;
    each_pair(
        [&](int m, int i) { result.words[m][i / 2] = pack<T>(values[m][i], values[m][i + 1]); });
    return result;
  }

  /// The same in shared memory, for two warps.
  __device__ void hand_over(const Scores& values, int to) {
    // Eight columns are an exclusive or with 16 bytes, as nothing else uses those bits.
    const int first =
        swizzled<128>(first_slot() + lane_ / 4, column_warp() * (kColumns / 8)) + lane_ % 4 * 4;
    each_pair([&](int m, int i) {
      const int rows = 16 * m + i / 2 % 2 * 8;
      *reinterpret_cast<std::uint32_t*>(shared_ + (first ^ i / 4 * 16) + to + rows * 128) =
          pack<T>(values[m][i], values[m][i + 1]);
    });
  }

  /// The loader of what hand_over() wrote.
  __device__ auto exchanged(int from) const {
    const std::uint32_t rows = address_ + first_slot() * 128 + first_row<128>(lane_);
    return [rows, from](int k, int m, std::uint32_t(&words)[4]) {
      ptx::load_matrices(words, columns_further(rows, k) + from + m * 16 * 128);
    };
  }

  /// By key, the columns whose lse is infinite.
  __device__ static void clear_weightless(const float* norms, Scores& weights) {
    each_pair([&](int m, int i) {
      const float2 norm = *reinterpret_cast<const float2*>(norms + i / 4 * 8);
      if (isinf(norm.x)) weights[m][i] = 0;
      if (isinf(norm.y)) weights[m][i + 1] = 0;
    });
  }

  __device__ void clear_pads(std::uint64_t valid, Scores& weights) const {
    valid >>= column_warp() * kColumns + lane_ % 4 * 2;
    each_pair([&](int m, int i) {
      if ((valid >> (i / 4 * 8) & 1) == 0) weights[m][i] = 0;
      if ((valid >> (i / 4 * 8 + 1) & 1) == 0) weights[m][i + 1] = 0;
    });
  }

  /// Adds up the sums of two warps over a half of the other rows each; either is left with half of
  /// the columns, in the first half of its registers.
  __device__ void join_sums() {
    constexpr int kHalf = kSumColumns / 4;  // of a row tile's sums
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const bool second = column_warp() == 1;
    // [warp, row tile, sum, lane], in the stages' memory
    const auto given = [this](int of_warp, int m, int i) -> float& {
      return reinterpret_cast<float*>(
          shared_ + Config::kOther)[((of_warp * kRowTiles + m) * kHalf + i) * 32 + lane_];
    };
    static_assert(4 * kRowTiles * kHalf * 32 * 4 <= Config::kStages * Config::kStageBytes);
    __syncthreads();  // the last stage has been read
    each_sum<kHalf>([&](int m, int i) {
      given(warp, m, i) = second ? d_scores_[m][i] : d_scores_[m][kHalf + i];
    });
    __syncthreads();
    each_sum<kHalf>([&](int m, int i) {
      d_scores_[m][i] =
          (second ? d_scores_[m][kHalf + i] : d_scores_[m][i]) + given(warp ^ 1, m, i);
    });
  }

  template <int Count, class Visit>
  __device__ static void each_sum(Visit&& visit) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < Count; ++i) visit(m, i);
    }
  }

  __device__ void store() {
    if constexpr (kColumnWarps == 2 && !Config::kExchanges) join_sums();
    const Item item = Item::current(p_.blocks, p_.per_tile);
    const Fragment fragment = item.rows(p_.own);
    constexpr int kWidth = kD / kColumnWarps;  // of this warp's columns
    const int column = column_warp() * kWidth;
    const auto store_rows = [&](int m, Tensor<T> to, const Tensor<const float>& coarse,
                                float factor, const float(&sums)[kWidth / 2]) {
      GradientRows rows = GradientRows::of(p_.own, fragment, first_slot() + 16 * m + lane_ / 4);
      if constexpr (!Config::kByKey) {
#pragma unroll
        for (int r = 0; r < 2; ++r) rows.has_fine[r] = norm_[2 * m + r] != INFINITY;
      }
      to.data += column;
      store_gradient<T, kWidth>(
          to, item.batch, item.head, rows, lane_ % 4, factor,
          coarse ? coarse.row(item.batch, item.tile, item.head) + column : nullptr, sums);
    };
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      // After join_sums() the first half of the registers.
      const auto& sums = reinterpret_cast<const float(&)[kWidth / 2]>(d_scores_[m]);
      store_rows(m, p_.d_scores, p_.coarse_scores, p_.scale, sums);
      if constexpr (Config::kByKey) {
        store_rows(m, p_.d_weights, p_.coarse_weights, 1.0F, d_weights_[m]);
      }
    }
  }

  const GradientParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  // Lane addresses, see products.cuh.
  std::uint32_t own_;
  std::uint32_t columns_;
  std::uint32_t rows_;
  FragmentList<Config::kListed> list_;
  FragmentCopy<Config::kThreads, kRowBytes> copy_;
  // By query: of this lane's rows.
  float norm_[2 * kRowTiles];
  float delta_[2 * kRowTiles];
  Sums d_scores_;
  Sums d_weights_;
};

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    gradient_kernel(const __grid_constant__ GradientParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  if (!Item::exists(parameters.blocks)) return;
  GradientBlock<T, Config>(parameters, shared).run();
}

}  // namespace vidsparse::cuda::sm80
