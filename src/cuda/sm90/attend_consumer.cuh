#pragma once

#include <cstdint>

#include "cuda/common/attend_epilogue.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/prefetch.cuh"
#include "cuda/ptx/shared_word.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_plan.cuh"
#include "cuda/sm90/item.cuh"

namespace vidsparse::cuda::sm90 {

/// A consumer warpgroup: 64 query rows against the key fragments its queue names.
template <class T, class Config>
class Consumer {
 public:
  static constexpr int kD = Config::kHeadDim;

  /// `index`: which of the consumers, the same in a whole warp as the compiler sees it.
  __device__ Consumer(const AttendParameters<T>& parameters, char* shared, std::uint32_t address,
                      int index)
      : p_(parameters),
        shared_(shared),
        address_(address),
        index_(index),
        queue_(address + Config::kQueues + 4 * index * Config::kQueue),
        query_(ptx::wgmma_descriptor(address + Config::kQuery + index * Config::kFragmentBytes, 0,
                                     1024)),
        keys_(ptx::wgmma_descriptor(address + Config::kKeys, 0, 1024)),
        values_(ptx::wgmma_descriptor(address + Config::kValues, 8192, 1024)) {}

  __device__ void run() {
    const Turns<Config> turns(address_);
    int index = turns.wait(0);
    ask_for_query(place(index));
    for (int wave = 0; index < p_.items; ++wave) {
      const Place at = place(index);
      float output[kD / 2];
      Softmax softmax(p_.scale_log2);
      finish_query();
      ask_for_gate(at);
#pragma unroll
      for (float& value : output) value = 0;
      attend(softmax, output);
      if (lane_ == 0) ptx::mbarrier_arrive(address_ + Config::kCredit + 8 * (wave & 1));
      ptx::barrier_sync(1 + index_, 128);  // all warps are done with the query rows
      index = turns.wait(wave + 1);
      if (index < p_.items) ask_for_query(place(index));
      softmax.finish();
      if (!at.exists) continue;
      store_rows<T, kD>(p_, at.item.batch, at.item.head, at.tile, fragment(at), warp_ * 16, lane_,
                        softmax, output);
    }
  }

 private:
  using Weights = std::uint32_t[16];
  static constexpr int kChunks = kD / 8;  ///< of 16 bytes in a row

  /// The query fragment of this consumer in an item.
  struct Place {
    Item item;
    bool exists;  ///< else that of tile 0, of which nothing is used
    int tile;
    int part;
  };

  __device__ Place place(int index) const {
    const Item item = Item::of(index, p_, Config::kConsumers);
    if (index_ >= item.rows) return {item, false, 0, 0};
    const int fragment = p_.turns.fragment(item.first_turn + index_);
    const int tile = p_.fragments_per_tile.quotient(fragment);
    return {item, true, tile, fragment - tile * p_.query.fragments_per_tile};
  }
  __device__ Fragment fragment(const Place& at) const {
    return p_.query.fragment(at.item.batch, at.tile, at.part);
  }

  /// If the next fragment is there when this one's weights are, its scores and this one's weighted
  /// values go to the tensor cores together. Products must come in the same order in all four
  /// warps, so they decide together: while the products before are under way, which hides the time
  /// that takes, and once more after them if the fragment was not there yet. Not between products:
  /// ptxas serializes them when they are waited for in a branch.
  __device__ void attend(Softmax& softmax, float (&output)[kD / 2]) {
    for (std::uint32_t command = pop(); !Command::is_end(command); command = pop()) {
      float scores[32];
      Weights weights;
      ptx::mbarrier_wait(full_k(command), Command::key_parity(command));
      multiply_keys(command, scores);
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(scores);
      release_keys(command);
      weigh(command, softmax, scores);
      softmax.rescale(output);
      convert(scores, weights);
      std::uint32_t next = peek();
      bool there = is_there(next);
      while (there) {
        ++popped_;
        multiply_keys(next, scores);
        wait_for_values(command);
        multiply_values(command, weights, output);
        std::uint32_t after = peek();
        there = is_there(after);
        ptx::wgmma_wait<1>();
        ptx::wgmma_pin(scores);
        release_keys(next);
        weigh(next, softmax, scores);
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(output);
        ptx::wgmma_pin(weights);
        release_values(command);
        softmax.rescale(output);
        convert(scores, weights);
        if (!there) {
          if (after == 0) after = peek();
          there = is_there(after);
        }
        command = next;
        next = after;
      }
      wait_for_values(command);
      multiply_values(command, weights, output);
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(output);
      ptx::wgmma_pin(weights);
      release_values(command);
    }
  }

  /// Whether all warps have been told of a next fragment and its K has arrived.
  __device__ bool is_there(std::uint32_t next) const {
    const bool told = next != 0 && !Command::is_end(next);
    return ptx::barrier_all(
        1 + index_, 128, told && ptx::mbarrier_test_wait(full_k(next), Command::key_parity(next)));
  }

  __device__ void multiply_keys(std::uint32_t command, float (&scores)[32]) {
    ptx::wgmma_arrive();
    const std::uint64_t keys = keys_ + slot_offset(Command::key_slot(command));
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      // 16 columns are 32 bytes of a row; the next 64 are 64 rows of 128 bytes further.
      const std::uint64_t depth = k / 4 * (8192 / 16) + k % 4 * 2;
      ptx::wgmma<T, false, false>(scores, query_ + depth, keys + depth, k > 0);
    }
    ptx::wgmma_commit();
  }

  __device__ void weigh(std::uint32_t command, Softmax& softmax, float (&scores)[32]) {
    if (command & Command::kPartial) mask_scores(valid_slots(command), lane_, scores);
    softmax.weigh(scores);
  }

  /// Weights in the form of a product's operand in registers.
  __device__ static void convert(const float (&scores)[32], Weights& weights) {
#pragma unroll
    for (int i = 0; i < 16; ++i) weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ void wait_for_values(std::uint32_t command) {
    ptx::mbarrier_wait(address_ + Config::kFullV + 8 * Command::value_slot(command),
                       Command::value_parity(command));
    if (p_.clear_pads && (command & Command::kPartial)) clear_pads(command);
  }

  __device__ void multiply_values(std::uint32_t command, Weights& weights,
                                  float (&output)[kD / 2]) {
    ptx::wgmma_pin(output);
    ptx::wgmma_pin(weights);
    ptx::wgmma_arrive();
    const std::uint64_t values = values_ + slot_offset(Command::value_slot(command));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ptx::wgmma<T, true>(output, weights + 4 * k, values + k * (16 * 128 / 16), true);
    }
    ptx::wgmma_commit();
  }

  /// The query rows as an operand in shared memory: rows of 128 bytes, their 16-byte chunks
  /// swizzled. Rows without a token are zero. They are asked for before the former item's output is
  /// written, which hides their way.
  __device__ void ask_for_query(const Place& at) {
    const Fragment rows = fragment(at);
    const std::uint32_t to = address_ + Config::kQuery + index_ * Config::kFragmentBytes;
    const T* from = p_.q.row(at.item.batch, 0, at.item.head) + lane_ % kChunks * 8;
#pragma unroll 2
    for (int i = 0; i < kChunks / 2; ++i) {
      const int token = at.exists ? rows.token(slot_of(i)) : -1;
      ptx::copy_async_16(to + chunk_offset(i), from + max(token, 0) * p_.q.row_stride, token >= 0);
    }
  }

  __device__ void finish_query() {
    ptx::wait_copies();
    if (p_.query_and != ~0U || p_.query_xor != 0) {
      char* rows = shared_ + Config::kQuery + index_ * Config::kFragmentBytes;
#pragma unroll 1
      for (int i = 0; i < kChunks / 2; ++i) {
        auto* words = reinterpret_cast<std::uint32_t*>(rows + chunk_offset(i));
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = (words[j] & p_.query_and) ^ p_.query_xor;
      }
    }
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
  }

  /// Of this thread's chunk number `i` of the query rows: its row, and where it lies.
  __device__ int slot_of(int i) const { return (i * 128 + warp_ * 32 + lane_) / kChunks; }
  __device__ int chunk_offset(int i) const {
    const int slot = slot_of(i);
    const int chunk = lane_ % kChunks;
    return chunk / 8 * 8192 + slot * 128 + ((chunk % 8) ^ (slot % 8)) * 16;
  }

  /// The gate's rows into L2, for the item's end.
  __device__ void ask_for_gate(const Place& at) const {
    if (!p_.gate || !at.exists) return;
    const int token = fragment(at).token(warp_ * 16 + lane_ / 2);
    if (token < 0) return;
    ptx::prefetch_l2(p_.gate.row(at.item.batch, token, at.item.head) + lane_ % 2 * (kD / 2));
  }

  __device__ std::uint64_t valid_slots(std::uint32_t command) const {
    return reinterpret_cast<const std::uint64_t*>(shared_ +
                                                  Config::kMasks)[Command::fragment(command)];
  }

  /// Values whose weight is 0 must still be numbers. Every consumer of the stage writes the same
  /// zeros, so none waits for another.
  __device__ void clear_pads(std::uint32_t command) {
    const std::uint64_t valid = valid_slots(command);
    char* values =
        shared_ + Config::kValues + Command::value_slot(command) * Config::kFragmentBytes;
    for (int i = warp_ * 32 + lane_; i < kD; i += 128) {  // a 128-byte row of a half each
      if (valid >> (i % 64) & 1) continue;
      auto* row = reinterpret_cast<uint4*>(values + i * 128);
#pragma unroll
      for (int j = 0; j < 8; ++j) row[j] = make_uint4(0, 0, 0, 0);
    }
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
  }

  /// The next command, or 0 if it is not there yet.
  __device__ std::uint32_t peek() const {
    const std::uint32_t command = ptx::load_acquire(queue_ + 4 * (popped_ % Config::kQueue));
    const bool there = (command & (3U << 30)) == Command::lap(popped_, Config::kQueue);
    return __shfl_sync(~0U, there ? command : 0, 0);
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
  __device__ std::uint32_t full_k(std::uint32_t command) const {
    return address_ + Config::kFullK + 8 * Command::key_slot(command);
  }
  __device__ void release_keys(std::uint32_t command) {
    if (lane_ != 0) return;
    ptx::mbarrier_arrive(address_ + Config::kEmptyK + 8 * Command::key_slot(command));
  }
  __device__ void release_values(std::uint32_t command) {
    if (lane_ != 0) return;
    ptx::mbarrier_arrive(address_ + Config::kEmptyV + 8 * Command::value_slot(command));
  }
  /// In descriptors, which count 16 bytes.
  __device__ static std::uint64_t slot_offset(std::uint32_t slot) {
    return std::uint64_t{slot} * (Config::kFragmentBytes / 16);
  }

  const AttendParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int index_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  std::uint32_t queue_;
  std::uint32_t popped_ = 0;
  std::uint64_t query_;  // descriptors, of slot 0
  std::uint64_t keys_;
  std::uint64_t values_;
};

}  // namespace vidsparse::cuda::sm90
