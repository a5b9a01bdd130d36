#pragma once

#include <cstdint>

#include "cuda/common/row_words.cuh"
#include "cuda/ptx/async_copy.cuh"
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
#include "cuda/sm90/item.cuh"

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
    const Turns<Config> turns(address_);
    int wave = 0;
    for (int index = turns.wait(0); index < p_.items; index = turns.wait(++wave)) {
      float d_scores[kD / 2];
      float d_weights[kByKey ? kD / 2 : 1];
      {
        const Own own(p_, index, index_);
        load_own(own);
#pragma unroll
        for (float& value : d_scores) value = 0;
#pragma unroll
        for (float& value : d_weights) value = 0;
        for (std::uint32_t command = pop(); !Command::is_end(command); command = pop()) {
          add(command, d_scores, d_weights);
        }
      }
      if (lane_ == 0) ptx::mbarrier_arrive(address_ + Config::kCredit + 8 * (wave & 1));
      const Own own(p_, worked_out_here(index), index_);
      if (own.exists) store(own, d_scores, d_weights);
    }
  }

 private:
  // Of 64 own rows and 64 columns what a thread holds, and the same in 16 bits.
  using Pairs = float[32];
  using Words = std::uint32_t[16];

  // A step's products go in parts, between which a warp does its arithmetic, sixteen columns of
  // pairs at a time: one that hands out products waits until the tensor cores take them.
  static constexpr int kParts = 4;

  /// The fragment that is a consumer's own in an item.
  struct Own {
    Item item;
    int fragment;
    bool exists;
    int tile;
    Fragment rows;

    __device__ Own(const BackwardParameters<T>& p, int index, int consumer)
        : item(Item::of(index, p, Config::kConsumers)) {
      const int turn = item.first_turn + consumer;
      exists = consumer < item.rows;
      tile = p.own_tile(item.batch, item.head, exists ? turn : 0);
      const int part = exists ? turn % p.own.fragments_per_tile : 0;
      fragment = tile * p.own.fragments_per_tile + part;
      rows = p.own.fragment(item.batch, tile, part);
      if constexpr (!kByKey) rows = p.own_edges.ordered(rows);
    }
  };

  /// What one slot of the other side gives. Products follow one another in the same order in all
  /// four warps whatever each of them waits for, so they need not agree on anything.
  template <int Size>
  __device__ void add(std::uint32_t command, float (&d_scores)[kD / 2], float (&d_weights)[Size]) {
    Pairs pairs;    // scores, then weights
    Pairs d_pairs;  // gradients of weights, then of scores
    Words words;
    Words d_words;
    ptx::mbarrier_wait(address_ + Config::kFullV + 8 * Command::value_slot(command),
                       Command::value_parity(command));
    ptx::mbarrier_wait(address_ + Config::kFullK + 8 * Command::key_slot(command),
                       Command::key_parity(command));
    if (command & Command::kPartial) clear_pads(command);
    const std::uint64_t keys = slot_of(keys_, Command::key_slot(command));
    const std::uint64_t values = slot_of(values_, Command::value_slot(command));
    if constexpr (kByKey) begin_pairs(command, pairs, d_pairs);
#pragma unroll
    for (int part = 0; part < kParts; ++part) multiply_own(own_, values, part, pairs);
    ptx::wgmma_commit();
    const std::uint64_t own_weights = own_ + Config::kFragmentBytes / 16;
    multiply_own(own_weights, keys, 0, d_pairs);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    ptx::wgmma_pin(pairs);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      weigh(command, part, pairs);
      if constexpr (kByKey) convert(part, pairs, words);
      if (part + 1 == kParts) break;
      multiply_own(own_weights, keys, part + 1, d_pairs);
      ptx::wgmma_commit();
    }
    if constexpr (kByKey) {
      ptx::wgmma_pin(d_weights);
#pragma unroll
      for (int part = 0; part < kParts; ++part) multiply_words(words, keys, part, d_weights);
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
    } else {
      ptx::wgmma_wait<0>();
    }
    ptx::wgmma_pin(d_pairs);
    if constexpr (!kByKey) release(Config::kEmptyK, Command::key_slot(command));
    ptx::wgmma_pin(d_scores);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      differentiate(command, part, pairs, d_pairs);
      convert(part, d_pairs, d_words);
      multiply_words(d_words, values, part, d_scores);
    }
    ptx::wgmma_commit();
    upcoming_ = peek();  // while the last product runs
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(d_scores);
    ptx::wgmma_pin(d_words);
    if constexpr (kByKey) {
      ptx::wgmma_pin(d_weights);
      ptx::wgmma_pin(words);
      release(Config::kEmptyK, Command::key_slot(command));
    }
    release(Config::kEmptyV, Command::value_slot(command));
  }

  /// By key lse and delta belong to columns, sixteen of them a thread: what is to be subtracted
  /// from scores and gradients of weights is where their sums begin, read while nothing waits for
  /// it.
  __device__ void begin_pairs(std::uint32_t command, Pairs& pairs, Pairs& d_pairs) const {
    const auto* rows = reinterpret_cast<const float2*>(row_slot(command)) + lane_ % 4;
#pragma unroll
    for (int block = 0; block < 8; ++block) {
      const float2 norm = rows[block * 4];
      pairs[4 * block] = pairs[4 * block + 2] = norm.x * p_.norm_factor;
      pairs[4 * block + 1] = pairs[4 * block + 3] = norm.y * p_.norm_factor;
      const float2 delta = rows[32 + block * 4];
      d_pairs[4 * block] = d_pairs[4 * block + 2] = -delta.x;
      d_pairs[4 * block + 1] = d_pairs[4 * block + 3] = -delta.y;
    }
    ptx::wgmma_pin(pairs);
    ptx::wgmma_pin(d_pairs);
  }

  /// Own rows times the transposed rows of a slot, over a part of the columns of both; by key added
  /// to what `pairs` begin with.
  __device__ static void multiply_own(std::uint64_t own, std::uint64_t slot, int part,
                                      Pairs& pairs) {
    constexpr int kSteps = kD / 16 / kParts;
    ptx::wgmma_arrive();
#pragma unroll
    for (int k = part * kSteps; k < (part + 1) * kSteps; ++k) {
      // 16 columns are 32 bytes of a row; the next 64 are 64 rows of 128 bytes further.
      const std::uint64_t depth = k / 4 * (8192 / 16) + k % 4 * 2;
      ptx::wgmma<T, false, false>(pairs, own + depth, slot + depth, kByKey || k > 0);
    }
  }

  /// Adds a part of pairs times its rows of a slot.
  __device__ static void multiply_words(const Words& pairs, std::uint64_t slot, int part,
                                        float (&sums)[kD / 2]) {
    ptx::wgmma_arrive();
    ptx::wgmma<T, true>(sums, pairs + 4 * part, slot + part * (16 * 128 / 16), true);
  }

  __device__ static void convert(int part, const Pairs& pairs, Words& words) {
#pragma unroll
    for (int i = 4 * part; i < 4 * part + 4; ++i) {
      words[i] = pack<T>(pairs[2 * i], pairs[2 * i + 1]);
      ptx::wgmma_pin(words[i]);
    }
  }

  /// Scores to weights. By query differentiate() masks too; here the branch keeps exponentials
  /// where they are, or they would move behind the wait for the gradients of weights.
  __device__ void weigh(std::uint32_t command, int part, Pairs& pairs) const {
#pragma unroll
    for (int i = 8 * part; i < 8 * part + 8; ++i) {
      pairs[i] = ptx::exp2_approximate(kByKey ? pairs[i] * p_.scale_log2
                                              : fmaf(pairs[i], p_.scale_log2, -norm_[i / 2 % 2]));
    }
    if (command & Command::kPartial) mask(command, part, pairs);
#pragma unroll
    for (int i = 8 * part; i < 8 * part + 8; ++i) ptx::wgmma_pin(pairs[i]);
  }

  /// Gradients of weights to those of scores.
  __device__ void differentiate(std::uint32_t command, int part, const Pairs& weights,
                                Pairs& pairs) const {
#pragma unroll
    for (int i = 8 * part; i < 8 * part + 8; ++i) {
      pairs[i] = weights[i] * (kByKey ? pairs[i] : pairs[i] - delta_[i / 2 % 2]);
    }
    if (command & Command::kPartial) mask(command, part, pairs);
  }

  /// Pairs with a slot that gives nothing become 0, whatever they are.
  __device__ void mask(std::uint32_t command, int part, Pairs& pairs) const {
    if constexpr (kByKey) {
      const auto* norms = reinterpret_cast<const float*>(row_slot(command)) + lane_ % 4 * 2;
#pragma unroll
      for (int i = 8 * part; i < 8 * part + 8; ++i) {
        if (isinf(norms[i / 4 * 8 + i % 2])) pairs[i] = 0;
      }
    } else {
      const std::uint64_t valid = valid_slots(command) >> lane_ % 4 * 2;
#pragma unroll
      for (int i = 8 * part; i < 8 * part + 8; ++i) {
        if ((valid >> (i / 4 * 8 + i % 2) & 1) == 0) pairs[i] = 0;
      }
    }
  }

  /// By query: the slots of the other side that give something.
  __device__ std::uint64_t valid_slots(std::uint32_t command) const {
    return reinterpret_cast<const std::uint64_t*>(shared_ +
                                                  Config::kMasks)[Command::fragment(command)];
  }

  /// Rows that pairs of 0 multiply must still be numbers. Every consumer of the slots writes the
  /// same zeros, so none waits for another.
  __device__ void clear_pads(std::uint32_t command) {
    std::uint64_t foul = 0;
    if constexpr (kByKey) {
      const auto* norms = reinterpret_cast<const float*>(row_slot(command));
      const std::uint32_t low = __ballot_sync(~0U, norms[lane_] == -INFINITY);
      const std::uint32_t high = __ballot_sync(~0U, norms[32 + lane_] == -INFINITY);
      foul = std::uint64_t{high} << 32 | low;
    } else if (p_.clear_pads) {
      foul = ~valid_slots(command);
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
    for (int i = worked_out_here(warp_ * 32 + lane_); i < kD;
         i += 128) {  // a 128-byte row of a half each
      if ((foul >> (i % 64) & 1) == 0) continue;
      auto* row = reinterpret_cast<uint4*>(shared_ + slot + i * 128);
#pragma unroll
      for (int j = 0; j < 8; ++j) row[j] = make_uint4(0, 0, 0, 0);
    }
  }

  /// The own rows of both tensors as operands in shared memory, 16-byte chunks swizzled. Rows
  /// without a token are zero. In few instructions, for they are fetched once an item.
  __device__ void load_own(const Own& own) {
    ptx::barrier_sync(1 + index_, 128);  // all warps are done with the former item's rows
    constexpr int kChunks = kD / 8;      // of a row
    const int lane = worked_out_here(lane_);
    const int chunk = lane % kChunks;
#pragma unroll 1
    for (int i = 0; i < 64 * kChunks / 128; ++i) {
      const int slot = (i * 128 + warp_ * 32 + lane) / kChunks;
      const int token = own.exists ? own.rows.token(slot) : -1;
      const std::uint32_t to = address_ + Config::kOwn + 2 * index_ * Config::kFragmentBytes +
                               chunk / 8 * 8192 + slot * 128 + ((chunk % 8) ^ (slot % 8)) * 16;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const Tensor<const T>& tensor = which == 0 ? p_.own_scores : p_.own_weights;
        const bool there = token >= 0 && !(which == 0 && p_.no_scores);
        const T* row = tensor.row(own.item.batch, max(token, 0), own.item.head);
        ptx::copy_async_16(to + which * Config::kFragmentBytes, row + chunk * 8, there);
      }
    }
    if constexpr (!kByKey) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* rows = norms_of(own) + row_ + 8 * r;
        norm_[r] = rows[0];
        delta_[r] = rows[kFragment];
      }
    }
    ptx::wait_copies();
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
  }

  /// By query: lse, then delta, of the own fragment's slots.
  __device__ const float* norms_of(const Own& own) const {
    const std::int64_t plane = std::int64_t{own.item.batch} * p_.heads + own.item.head;
    return p_.rows + (plane * p_.turns.fragments() + own.fragment) * (2 * kFragment);
  }

  template <int Size>
  __device__ void store(const Own& own, const float (&d_scores)[kD / 2],
                        const float (&d_weights)[Size]) const {
    ptx::barrier_sync(1 + index_, 128);  // all warps' products have read the own rows
    store_rows(own, p_.d_scores, p_.coarse_scores, p_.scale, d_scores);
    if constexpr (kByKey) store_rows(own, p_.d_weights, p_.coarse_weights, 1, d_weights);
  }

  /// Writes this warp's 16 rows of a gradient: sums times `factor`, plus the tile's row of the
  /// pooled branch's gradient, rounded once; pads become 0. They pass through shared memory where
  /// the own rows were, so that a lane has eight neighbouring elements, in few instructions.
  __device__ void store_rows(const Own& own, const Tensor<T>& to, const float* coarse, float factor,
                             const float (&sums)[kD / 2]) const {
    constexpr int kLanes = kD / 8;  // of a row
    const int lane = worked_out_here(lane_);
    const Item& item = own.item;
    auto* staged = reinterpret_cast<float*>(
        shared_ + Config::kOwn + 2 * index_ * Config::kFragmentBytes + warp_ * 16 * kD * 4);
#pragma unroll
    for (int block = 0; block < kD / 8; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = lane / 4 + 8 * r;
        *reinterpret_cast<float2*>(staged + row * kD + (block ^ (row % 8)) * 8 + lane % 4 * 2) =
            make_float2(sums[4 * block + 2 * r], sums[4 * block + 2 * r + 1]);
      }
    }
    __syncwarp();
    if (coarse != nullptr) {
      const std::int64_t plane = std::int64_t{item.batch} * p_.heads + item.head;
      coarse += (plane * p_.own.tiles + own.tile) * kD + lane % kLanes * 8;
    }
#pragma unroll 1
    for (int row = lane / kLanes; row < 16; row += 32 / kLanes) {
      const int slot = warp_ * 16 + row;
      const int valid = own.rows.token(slot);
      const int token = valid >= 0 ? valid : p_.own.pad_token(own.rows, slot);
      if (token < 0) continue;
      const float* from = staged + row * kD + (lane % kLanes ^ (row % 8)) * 8;
      float values[8] = {};
      // Rows without weight have no fine gradient, whatever they met.
      if (kByKey || !isinf(norms_of(own)[slot])) {
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = from[i] * factor;
      }
      if (coarse != nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] += coarse[i];
      }
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (valid >= 0) {
        eight = make_uint4(pack<T>(values[0], values[1]), pack<T>(values[2], values[3]),
                           pack<T>(values[4], values[5]), pack<T>(values[6], values[7]));
      }
      reinterpret_cast<uint4*>(to.row(item.batch, token, item.head))[lane % kLanes] = eight;
    }
    __syncwarp();
  }

  /// A number that what follows from it cannot be worked out before: addresses that are needed once
  /// an item would otherwise take registers, or memory, all the time.
  __device__ static int worked_out_here(int number) {
    asm volatile("" : "+r"(number));
    return number;
  }

  __device__ std::uint32_t pop() {
    std::uint32_t command = upcoming_;
    while (command == 0) {
      command = peek();
      if (command == 0) __nanosleep(20);
    }
    upcoming_ = 0;
    ++popped_;
    return command;
  }
  /// The next command, or 0 if it is not there yet. What it tells of is guarded by barriers.
  __device__ std::uint32_t peek() const {
    const std::uint32_t command = ptx::load_relaxed(queue_ + 4 * (popped_ % Config::kQueue));
    const bool there = (command & (3U << 30)) == Command::lap(popped_, Config::kQueue);
    return __shfl_sync(~0U, there ? command : 0, 0);
  }
  __device__ void release(int barriers, std::uint32_t slot) const {
    if (lane_ == 0) ptx::mbarrier_arrive(address_ + barriers + 8 * slot);
  }
  __device__ const char* row_slot(std::uint32_t command) const {
    return shared_ + Config::kRowSlots + Command::key_slot(command) * Config::kRowBytes;
  }
  /// The descriptor of a slot, given that of slot 0; they count 16 bytes.
  __device__ static std::uint64_t slot_of(std::uint64_t first, std::uint32_t slot) {
    return first + std::uint64_t{slot} * (Config::kFragmentBytes / 16);
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
  std::uint32_t upcoming_ = 0;  // the next command, if it has been seen
  std::uint64_t own_;           // descriptors, of slot 0
  std::uint64_t keys_;
  std::uint64_t values_;
  float norm_[2] = {};  // by query: of the thread's rows
  float delta_[2] = {};
};

}  // namespace vidsparse::cuda::sm90
