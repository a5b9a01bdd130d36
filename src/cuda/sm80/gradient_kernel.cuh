#pragma once

#include <cstdint>

#include "cuda/common/backward_epilogue.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/sm80/fragment_copy.cuh"
#include "cuda/sm80/fragment_list.cuh"
#include "cuda/sm80/gradient_config.hpp"
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

  __device__ GradientBlock(const GradientParameters<T>& parameters, char* shared)
      : p_(parameters),
        shared_(shared),
        address_(ptx::shared_address(shared)),
        own_(address_ + Config::kOwn + first_slot() * kRowBytes + first_row<kRowBytes>(lane_)),
        columns_(address_ + Config::kOther + first_column<kRowBytes>(lane_)),
        rows_(address_ + Config::kOther + first_row<kRowBytes>(lane_)),
        list_(p_.other, p_.per_tile, p_.other_fragments, shared + Config::kList),
        copy_(p_.other) {}

  __device__ void run() {
#pragma unroll
    for (float& value : d_scores_[0]) value = 0;
    if constexpr (Config::kByKey) {
#pragma unroll
      for (float& value : d_weights_[0]) value = 0;
    }
    if (start_own()) {
      const int members = Config::kByKey ? p_.group : 1;
      for (int member = 0; member < members; ++member) walk(member);
    }
    ptx::wait_copy_groups<0>();
    store();
  }

 private:
  using Scores = float[1][32];
  using Sums = float[1][kD / 2];  ///< of 16 rows
  using Weights = std::uint32_t[1][16];

  __device__ int first_slot() const { return static_cast<int>(threadIdx.x) / 32 * 16; }

  /// Starts the copies of the own fragment; false if it has no valid slot.
  __device__ bool start_own() {
    const Item item = Item::current(p_.per_tile);
    const KeyFragment* entry = p_.own_table + item.batch * p_.own_table_batch +
                               item.head * p_.own_table_head + item.fragment;
    const ListedFragment own =
        ListedFragment::of(p_.own, item.fragment, __ldg(reinterpret_cast<const uint4*>(entry)));
    if (own.valid == 0) return false;
    FragmentCopy<Config::kThreads, kRowBytes> copy(p_.own);
    copy.start(address_ + Config::kOwn, p_.own_scores.head(item.batch, item.head),
               p_.own_scores.token_bytes, own);
    copy.start(address_ + Config::kOwn + Config::kFragmentBytes,
               p_.own_weights.head(item.batch, item.head), p_.own_weights.token_bytes, own);
    ptx::commit_copies();
    if constexpr (!Config::kByKey) {
      const float* norms = norms_of(item.batch, item.head, item.fragment);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int slot = first_slot() + lane_ / 4 + 8 * r;
        norm_[r] = without_weight_infinite(norms[slot]);
        delta_[r] = norms[kFragment + slot];
      }
    }
    return true;
  }

  /// All fragments of the other side's head that belongs to the own one's; `member`: of its group.
  __device__ void walk(int member) {
    list_.restart();  // which waits until the former head's last stage has been read
    ListedFragment fragment;
    bool more = start_other(member, 0, fragment);
    int stage = 0;
    while (more) {
      ptx::wait_copy_groups<0>();
      __syncthreads();  // this stage is there; the other one has been read
      const std::uint64_t valid = fragment.valid;
      const int offset = stage * Config::kStageBytes;
      if constexpr (Config::kStages == 2) {
        stage ^= 1;
        more = start_other(member, stage, fragment);
      }
      add(offset, valid);
      if constexpr (Config::kStages == 1) {
        __syncthreads();  // all have read it
        more = start_other(member, 0, fragment);
      }
    }
  }

  /// Asks for the next fragment's rows.
  __device__ bool start_other(int member, int stage, ListedFragment& fragment) {
    const auto query_or_key_head = [this, member](const Item& item) {
      return Config::kByKey ? item.head * p_.group + member : item.head / p_.group;
    };
    const bool more = list_.next(fragment, [&] {
      const Item item = Item::current(p_.per_tile);
      const int query_head = Config::kByKey ? query_or_key_head(item) : item.head;
      return ListSource{
          p_.mask + item.batch * p_.mask_batch + query_head * p_.mask_head +
              item.tile * p_.mask_row,
          p_.other_table + item.batch * p_.other_table_batch + query_head * p_.other_table_head};
    });
    if (!more) return false;
    const Item item = Item::current(p_.per_tile);
    const int head = query_or_key_head(item);
    const std::uint32_t to = address_ + Config::kOther + stage * Config::kStageBytes;
    copy_.start(to, p_.other_scores.head(item.batch, head), p_.other_scores.token_bytes, fragment);
    copy_.start(to + Config::kFragmentBytes, p_.other_weights.head(item.batch, head),
                p_.other_weights.token_bytes, fragment);
    if constexpr (Config::kByKey) {
      if (threadIdx.x < 32) {
        ptx::copy_async_16(to + Config::kNorms + lane_ * 16,
                           norms_of(item.batch, head, fragment.number()) + lane_ * 4, true);
      }
    }
    ptx::commit_copies();
    return true;
  }

  __device__ const float* norms_of(int batch, int query_head, int fragment) const {
    const std::int64_t plane = std::int64_t{batch} * p_.query_heads + query_head;
    return p_.norms + (plane * p_.query_fragments + fragment) * (2 * kFragment);
  }

  /// Rows without weight may have either infinity; with the positive one their weights are 0.
  __device__ static float without_weight_infinite(float norm) {
    return norm == -INFINITY ? INFINITY : norm;
  }

  /// One fragment's share, from the stage at `offset`.
  __device__ void add(int offset, std::uint64_t valid) {
    const auto own = [this](int which) {
      return [this, which](int k, int, std::uint32_t(&rows)[4]) {
        ptx::load_matrices(rows, (own_ ^ k * 32) + which * Config::kFragmentBytes);
      };
    };
    Scores weights;  // p
    multiply_transposed<T, kD>(weights, own(0), columns_ + offset);
    const float* norms =
        reinterpret_cast<const float*>(shared_ + Config::kOther + offset + Config::kNorms) +
        lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      float2 norm = {norm_[i / 2 % 2], norm_[i / 2 % 2]};
      if constexpr (Config::kByKey) {
        norm = *reinterpret_cast<const float2*>(norms + i / 4 * 8);
        norm = {without_weight_infinite(norm.x), without_weight_infinite(norm.y)};
      }
      weights[0][i] = ptx::exp2_approximate(fmaf(weights[0][i], p_.scale_log2, -norm.x));
      weights[0][i + 1] = ptx::exp2_approximate(fmaf(weights[0][i + 1], p_.scale_log2, -norm.y));
    }
    if constexpr (!Config::kByKey) {
      // A pad's score is 0, and its weight may be infinite.
      if (~valid != 0) clear_pads(valid, weights[0]);
    }
    Weights packed;
    if constexpr (Config::kByKey) {
      pack_pairs(weights, packed);
      multiply_added<T, kD>(d_weights_, packed, rows_ + offset + Config::kFragmentBytes);
    }
    Scores d_scores;
    multiply_transposed<T, kD>(d_scores, own(1), columns_ + offset + Config::kFragmentBytes);
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      float2 delta = {delta_[i / 2 % 2], delta_[i / 2 % 2]};
      if constexpr (Config::kByKey) {
        delta = *reinterpret_cast<const float2*>(norms + kFragment + i / 4 * 8);
      }
      d_scores[0][i] = weights[0][i] * (d_scores[0][i] - delta.x);
      d_scores[0][i + 1] = weights[0][i + 1] * (d_scores[0][i + 1] - delta.y);
    }
    pack_pairs(d_scores, packed);
    multiply_added<T, kD>(d_scores_, packed, rows_ + offset);
  }

  __device__ void clear_pads(std::uint64_t valid, float (&weights)[32]) const {
    valid >>= lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if ((valid >> (i / 4 * 8 + i % 2) & 1) == 0) weights[i] = 0;
    }
  }

  __device__ static void pack_pairs(const Scores& values, Weights& words) {
#pragma unroll
    for (int i = 0; i < 16; ++i) words[0][i] = pack<T>(values[0][2 * i], values[0][2 * i + 1]);
  }

  __device__ void store() {
    const Item item = Item::current(p_.per_tile);
    GradientRows rows = GradientRows::of(p_.own, item.rows(p_.own), first_slot() + lane_ / 4);
    if constexpr (!Config::kByKey) {
#pragma unroll
      for (int r = 0; r < 2; ++r) rows.has_fine[r] = norm_[r] != INFINITY;
    }
    const auto row_of = [&](const Tensor<const float>& coarse) {
      return coarse ? coarse.row(item.batch, item.tile, item.head) : nullptr;
    };
    store_gradient<T, kD>(p_.d_scores, item.batch, item.head, rows, lane_ % 4, p_.scale,
                          row_of(p_.coarse_scores), d_scores_[0]);
    if constexpr (Config::kByKey) {
      store_gradient<T, kD>(p_.d_weights, item.batch, item.head, rows, lane_ % 4, 1.0F,
                            row_of(p_.coarse_weights), d_weights_[0]);
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
  // By query: of this lane's two rows.
  float norm_[2] = {INFINITY, INFINITY};
  float delta_[2] = {0, 0};
  Sums d_scores_;
  Sums d_weights_;
};

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    gradient_kernel(const __grid_constant__ GradientParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  GradientBlock<T, Config>(parameters, shared).run();
}

}  // namespace vidsparse::cuda::sm80
