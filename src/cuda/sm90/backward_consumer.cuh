#pragma once

#include <cstdint>

#include "cuda/common/backward_epilogue.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared_word.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_plan.cuh"
#include "cuda/sm90/backward_config.hpp"
#include "cuda/sm90/backward_parameters.hpp"

namespace vidsparse::cuda::sm90 {

/// A consumer warpgroup of a backward pass: its own fragment against the fragments its queue names.
/// Scores and weights are 64 own rows x 64 rows of the other side: S^T by key, S by query.
template <class T, class Config>
class BackwardConsumer {
 public:
  static constexpr int kD = Config::kHeadDim;
  static constexpr bool kByKey = Config::kByKey;

  /// `index`: which of the consumers, the same in a whole warp as the compiler sees it.
  __device__ BackwardConsumer(const BackwardParameters<T>& parameters, char* shared,
                              std::uint32_t address, int index)
      : p_(parameters),
        shared_(shared),
        address_(address),
        index_(index),
        queue_(address + Config::kQueues + 4 * index * Config::kQueue),
        own_(ptx::wgmma_descriptor(address + Config::kOwn + 2 * index * Config::kFragmentBytes, 0,
                                   1024)),
        keys_(ptx::wgmma_descriptor(address + Config::kKeys, 8192, 1024)),
        values_(ptx::wgmma_descriptor(address + Config::kValues, 8192, 1024)) {}

  __device__ void run() {
    int wave = 0;
    for (int index = blockIdx.x; index < p_.items; index += gridDim.x, ++wave) {
      float d_scores[kD / 2];
      float d_weights[kByKey ? kD / 2 : 1];
      {
        const Own own(p_, index, index_);
        load_own(own);
        const Item item = own.item;
#pragma unroll
        for (float& value : d_scores) value = 0;
#pragma unroll
        for (float& value : d_weights) value = 0;
        for (std::uint32_t command = pop(); !Command::is_end(command); command = pop()) {
          add(command, item.batch, d_scores, d_weights);
        }
      }
      if (lane_ == 0) ptx::mbarrier_arrive(address_ + Config::kCredit + 8 * (wave & 1));
      // Worked out again, for there are no registers to keep it in.
      int again = index;
      asm volatile("" : "+r"(again));
      const Own own(p_, again, index_);
      if (own.exists) store(own, d_scores, d_weights);
    }
  }

 private:
  using Words = std::uint32_t[16];

  /// The fragment that is a consumer's own in an item.
  struct Own {
    Item item;
    int fragment;
    bool exists;
    int tile;
    Fragment rows;

    __device__ Own(const BackwardParameters<T>& p, int index, int consumer)
        : item(Item::of(index, p, Config::kConsumers)), fragment(item.first_fragment + consumer) {
      exists = fragment < p.query_fragments;
      if (!exists) fragment = 0;
      tile = p.fragments_per_tile.quotient(fragment);
      rows = p.own.fragment(item.batch, tile, fragment - tile * p.own.fragments_per_tile);
    }
  };

  /// What one fragment of the other side gives. Products follow one another in the same order in
  /// all four warps whatever each of them waits for, so they need not agree on anything.
  template <int Size>
  __device__ void add(std::uint32_t command, int batch, float (&d_scores)[kD / 2],
                      float (&d_weights)[Size]) {
    float weights[32];
    float d_pairs[32];
    Words weight_words;
    Words score_words;
    ptx::mbarrier_wait(address_ + Config::kFullV + 8 * Command::value_slot(command),
                       Command::value_parity(command));
    ptx::mbarrier_wait(address_ + Config::kFullK + 8 * Command::key_slot(command),
                       Command::key_parity(command));
    const bool partial = command & Command::kPartial;
    if (partial) clear_pads(command, batch);
    const std::uint64_t keys = keys_ + slot_offset(Command::key_slot(command));
    const std::uint64_t values = values_ + slot_offset(Command::value_slot(command));
    multiply_own(own_, values, weights);
    multiply_own(own_ + Config::kFragmentBytes / 16, keys, d_pairs);
    ptx::wgmma_wait<1>();
    ptx::wgmma_pin(weights);
    weigh(command, weights);
    if constexpr (kByKey) {
      if (partial) mask(command, batch, weights);
      convert(weights, weight_words);
      multiply_words(weight_words, keys, d_weights);
      ptx::wgmma_wait<1>();
    } else {
      ptx::wgmma_wait<0>();
    }
    ptx::wgmma_pin(d_pairs);
    if constexpr (!kByKey) release(Config::kEmptyK, Command::key_slot(command));
    differentiate(command, weights, d_pairs);
    if (partial) mask(command, batch, d_pairs);
    convert(d_pairs, score_words);
    multiply_words(score_words, values, d_scores);
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(d_scores);
    ptx::wgmma_pin(score_words);
    if constexpr (kByKey) {
      ptx::wgmma_pin(d_weights);
      ptx::wgmma_pin(weight_words);
      release(Config::kEmptyK, Command::key_slot(command));
    }
    release(Config::kEmptyV, Command::value_slot(command));
  }

  /// Own rows times the transposed rows of a slot.
  __device__ static void multiply_own(std::uint64_t own, std::uint64_t slot, float (&pairs)[32]) {
    ptx::wgmma_arrive();
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      // 16 columns are 32 bytes of a row; the next 64 are 64 rows of 128 bytes further.
      const std::uint64_t depth = k / 4 * (8192 / 16) + k % 4 * 2;
      ptx::wgmma<T, false, false>(pairs, own + depth, slot + depth, k > 0);
    }
    ptx::wgmma_commit();
  }

  /// Adds pairs times the rows of a slot.
  __device__ static void multiply_words(Words& pairs, std::uint64_t slot, float (&sums)[kD / 2]) {
    ptx::wgmma_pin(sums);
    ptx::wgmma_pin(pairs);
    ptx::wgmma_arrive();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ptx::wgmma<T, true>(sums, pairs + 4 * k, slot + k * (16 * 128 / 16), true);
    }
    ptx::wgmma_commit();
  }

  __device__ static void convert(const float (&pairs)[32], Words& words) {
#pragma unroll
    for (int i = 0; i < 16; ++i) words[i] = pack<T>(pairs[2 * i], pairs[2 * i + 1]);
  }

  /// Scores to weights.
  __device__ void weigh(std::uint32_t command, float (&pairs)[32]) const {
#pragma unroll
    for (int block = 0; block < 8; ++block) {
      float norm[4];
      of_rows(command, 0, block, norm_, norm);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[4 * block + i] =
            ptx::exp2_approximate(fmaf(pairs[4 * block + i], p_.scale_log2, -norm[i]));
      }
    }
  }

  /// Gradients of weights to those of scores.
  __device__ void differentiate(std::uint32_t command, const float (&weights)[32],
                                float (&pairs)[32]) const {
#pragma unroll
    for (int block = 0; block < 8; ++block) {
      float delta[4];
      of_rows(command, 1, block, delta_, delta);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[4 * block + i] = weights[4 * block + i] * (pairs[4 * block + i] - delta[i]);
      }
    }
  }

  /// A number of each query (which: 0 its norm, 1 delta) for the four pairs of a block of eight
  /// columns that a thread holds: two columns in two rows.
  __device__ void of_rows(std::uint32_t command, int which, int block, const float (&own)[2],
                          float (&values)[4]) const {
    if constexpr (kByKey) {
      const float2 two =
          reinterpret_cast<const float2*>(row_slot(command))[which * 32 + block * 4 + lane_ % 4];
      values[0] = values[2] = two.x;
      values[1] = values[3] = two.y;
    } else {
      values[0] = values[1] = own[0];
      values[2] = values[3] = own[1];
    }
  }

  /// Pairs with a slot that gives nothing become 0, whatever they are.
  __device__ void mask(std::uint32_t command, int batch, float (&pairs)[32]) const {
    const std::uint64_t valid = valid_slots(command, batch) >> lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if ((valid >> (i / 4 * 8 + i % 2) & 1) == 0) pairs[i] = 0;
    }
  }

  __device__ std::uint64_t valid_slots(std::uint32_t command, int batch) const {
    if constexpr (kByKey) {
      const auto* norms = reinterpret_cast<const float*>(row_slot(command));
      const std::uint32_t low = __ballot_sync(~0U, !isinf(norms[lane_]));
      const std::uint32_t high = __ballot_sync(~0U, !isinf(norms[32 + lane_]));
      return std::uint64_t{high} << 32 | low;
    } else {
      return p_.table[batch * p_.table_batch + Command::fragment(command)].valid;
    }
  }

  /// Rows that pairs of 0 multiply must still be numbers. Every consumer of the slots writes the
  /// same zeros, so none waits for another.
  __device__ void clear_pads(std::uint32_t command, int batch) {
    std::uint64_t foul = 0;
    if constexpr (kByKey) {
      const auto* norms = reinterpret_cast<const float*>(row_slot(command));
      const std::uint32_t low = __ballot_sync(~0U, norms[lane_] == -INFINITY);
      const std::uint32_t high = __ballot_sync(~0U, norms[32 + lane_] == -INFINITY);
      foul = std::uint64_t{high} << 32 | low;
    } else if (p_.clear_pads) {
      foul = ~valid_slots(command, batch);
    }
    if (foul == 0) return;
    clear(Config::kValues + Command::value_slot(command) * Config::kFragmentBytes, foul);
    if constexpr (kByKey) {
      clear(Config::kKeys + Command::key_slot(command) * Config::kFragmentBytes, foul);
    }
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
  }

  __device__ void clear(int slot, std::uint64_t foul) const {
    for (int i = warp_ * 32 + lane_; i < kD; i += 128) {  // a 128-byte row of a half each
      if ((foul >> (i % 64) & 1) == 0) continue;
      auto* row = reinterpret_cast<uint4*>(shared_ + slot + i * 128);
#pragma unroll
      for (int j = 0; j < 8; ++j) row[j] = make_uint4(0, 0, 0, 0);
    }
  }

  /// The own rows of both tensors as operands in shared memory. Rows without a token are zero.
  __device__ void load_own(const Own& own) {
    ptx::barrier_sync(1 + index_, 128);  // all warps are done with the former item's rows
    char* to = shared_ + Config::kOwn + 2 * index_ * Config::kFragmentBytes;
    load_rows(to, p_.own_scores, own);
    load_rows(to + Config::kFragmentBytes, p_.own_weights, own);
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
    if constexpr (!kByKey) {
      const float* rows = p_.rows + ((std::int64_t{own.item.batch} * p_.heads + own.item.head) *
                                         p_.query_fragments +
                                     own.fragment) *
                                        (2 * kFragment);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        norm_[r] = rows[row_ + 8 * r];
        delta_[r] = rows[kFragment + row_ + 8 * r];
      }
    }
  }

  __device__ void load_rows(char* to, const Tensor<const T>& tensor, const Own& own) const {
    constexpr int kChunks = kD / 8;  // of a row
    constexpr int kSteps = 64 * kChunks / 128;
    const int chunk = lane_ % kChunks;
    uint4 eights[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int token = own.exists ? own.rows.token((i * 128 + warp_ * 32 + lane_) / kChunks) : -1;
      eights[i] = make_uint4(0, 0, 0, 0);
      if (token >= 0) {
        eights[i] =
            __ldg(reinterpret_cast<const uint4*>(tensor.row(own.item.batch, token, own.item.head)) +
                  chunk);
      }
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int slot = (i * 128 + warp_ * 32 + lane_) / kChunks;
      *reinterpret_cast<uint4*>(to + chunk / 8 * 8192 + slot * 128 +
                                ((chunk % 8) ^ (slot % 8)) * 16) = eights[i];
    }
  }

  template <int Size>
  __device__ void store(const Own& own, const float (&d_scores)[kD / 2],
                        const float (&d_weights)[Size]) const {
    GradientRows rows = GradientRows::of(p_.own, own.rows, row_);
    if constexpr (!kByKey) {
#pragma unroll
      for (int r = 0; r < 2; ++r) rows.has_fine[r] = !isinf(norm_[r]);
    }
    const Item& item = own.item;
    const std::int64_t tile =
        (std::int64_t{item.batch} * p_.heads + item.head) * p_.own.tiles + own.tile;
    const auto coarse = [&](const float* tensor) {
      return tensor == nullptr ? nullptr : tensor + tile * kD;
    };
    store_gradient<T, kD>(p_.d_scores, item.batch, item.head, rows, lane_ % 4, p_.scale,
                          coarse(p_.coarse_scores), d_scores);
    if constexpr (kByKey) {
      store_gradient<T, kD>(p_.d_weights, item.batch, item.head, rows, lane_ % 4, 1,
                            coarse(p_.coarse_weights), d_weights);
    }
  }

  __device__ std::uint32_t pop() {
    std::uint32_t command = peek();
    while (command == 0) {
      __nanosleep(20);
      command = peek();
    }
    ++popped_;
    return command;
  }
  /// The next command, or 0 if it is not there yet.
  __device__ std::uint32_t peek() const {
    const std::uint32_t command = ptx::load_acquire(queue_ + 4 * (popped_ % Config::kQueue));
    const bool there = (command & (3U << 30)) == Command::lap(popped_, Config::kQueue);
    return __shfl_sync(~0U, there ? command : 0, 0);
  }
  __device__ void release(int barriers, std::uint32_t slot) const {
    if (lane_ == 0) ptx::mbarrier_arrive(address_ + barriers + 8 * slot);
  }
  __device__ const char* row_slot(std::uint32_t command) const {
    return shared_ + Config::kRowSlots + Command::key_slot(command) * Config::kRowBytes;
  }
  /// In descriptors, which count 16 bytes.
  __device__ static std::uint64_t slot_offset(std::uint32_t slot) {
    return std::uint64_t{slot} * (Config::kFragmentBytes / 16);
  }

  const BackwardParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int index_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int row_ = warp_ * 16 + lane_ / 4;  // of the 64, the first of this thread's two
  std::uint32_t queue_;
  std::uint32_t popped_ = 0;
  std::uint64_t own_;  // descriptors, of slot 0
  std::uint64_t keys_;
  std::uint64_t values_;
  float norm_[2] = {};  // by query: of the thread's rows
  float delta_[2] = {};
};

}  // namespace vidsparse::cuda::sm90
