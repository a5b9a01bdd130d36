#pragma once

#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_epilogue.cuh"
#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_producer.cuh"
#include "cuda/sm90/softmax.cuh"

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
        queue_(reinterpret_cast<std::uint32_t*>(shared + Config::kQueues) +
               index * Config::kQueue),
        scores_key_(ptx::wgmma_descriptor(address, 0, 1024)),
        output_value_(ptx::wgmma_descriptor(address + Config::kFragmentBytes, 8192, 1024)),
        query_shared_(ptx::wgmma_descriptor(
            address + Config::kQuery + index * Config::kFragmentBytes, 0, 1024)) {}

  __device__ void run() {
    int wave = 0;
    for (int index = blockIdx.x; index < p_.items; index += gridDim.x, ++wave) {
      const Item item = Item::of(index, p_, Config::kConsumers);
      const int fragment = item.first_fragment + index_;
      const bool exists = fragment < p_.query_fragments;
      const int tile = p_.fragments_per_tile.quotient(exists ? fragment : 0);
      const int part = exists ? fragment - tile * p_.query.fragments_per_tile : 0;
      float output[kD / 2];
      Softmax softmax(p_.scale_log2);
      if constexpr (Config::kQueryInRegisters) {
        attend_in_registers(item, tile, part, exists, softmax, output);
      } else {
        attend_from_shared(item, tile, part, exists, softmax, output);
      }
      if (lane_ == 0) ptx::mbarrier_arrive(address_ + Config::kCredit + 8 * (wave & 1));
      softmax.finish();
      if (!exists) continue;
      const Fragment rows = p_.query.fragment(item.batch, tile, part);
      store_rows<T, kD>(p_, item, tile, rows, warp_, lane_, softmax, output);
    }
  }

 private:
  using Weights = std::uint32_t[16];

  /// One product after the other: three warpgroups keep the tensor cores busy between them.
  __device__ void attend_in_registers(const Item& item, int tile, int part, bool exists,
                                      Softmax& softmax, float (&output)[kD / 2]) {
    std::uint32_t query[kD / 4];
    load_query(item, tile, part, exists, query);
    clear(output);
    for (std::uint32_t command = pop(); !(command & Command::kEnd); command = pop()) {
      float scores[32];
      ptx::mbarrier_wait(full_k(command), Command::parity(command));
      ptx::wgmma_arrive();
      const std::uint64_t key = scores_key_ + stage_offset(command);
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) {
        ptx::wgmma<T, false>(scores, query + 4 * k, key + depth_offset(k), k > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(scores);
      Weights weights;
      weigh(command, item, softmax, scores, output, weights);
      weigh_values(command, item, weights, output);
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(output);
      ptx::wgmma_pin(weights);
      release(command);
    }
  }

  /// The next fragment's scores run behind this one's weighted values.
  __device__ void attend_from_shared(const Item& item, int tile, int part, bool exists,
                                     Softmax& softmax, float (&output)[kD / 2]) {
    {
      std::uint32_t query[kD / 4];
      load_query(item, tile, part, exists, query);
      store_query(query);
    }
    clear(output);
    std::uint32_t command = pop();
    if (command & Command::kEnd) return;
    float scores[32];
    ptx::mbarrier_wait(full_k(command), Command::parity(command));
    multiply_shared(command, scores);
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(scores);
    while (true) {
      Weights weights;
      weigh(command, item, softmax, scores, output, weights);
      weigh_values(command, item, weights, output);
      std::uint32_t next = peek();
      bool released = false;
      if (next == 0 || (!(next & Command::kEnd) &&
                        !ptx::mbarrier_try_wait(full_k(next), Command::parity(next)))) {
        // The producer may be waiting for this stage.
        ptx::wgmma_wait<0>();
        release(command);
        released = true;
        next = wait_for_command();
        if (!(next & Command::kEnd)) ptx::mbarrier_wait(full_k(next), Command::parity(next));
      }
      ++popped_;
      if (next & Command::kEnd) {
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(output);
        ptx::wgmma_pin(weights);
        if (!released) release(command);
        return;
      }
      multiply_shared(next, scores);
      ptx::wgmma_wait<1>();
      if (!released) release(command);
      command = next;
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(output);
      ptx::wgmma_pin(weights);
      ptx::wgmma_pin(scores);
    }
  }

  __device__ void multiply_shared(std::uint32_t command, float (&scores)[32]) {
    ptx::wgmma_arrive();
    const std::uint64_t key = scores_key_ + stage_offset(command);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      ptx::wgmma<T, false, false>(scores, query_shared_ + depth_offset(k), key + depth_offset(k),
                                  k > 0);
    }
    ptx::wgmma_commit();
  }

  /// Scores to weights in the form of a product's operand.
  __device__ void weigh(std::uint32_t command, const Item& item, Softmax& softmax,
                        float (&scores)[32], float (&output)[kD / 2], Weights& weights) {
    if (command & Command::kPartial) mask_scores(valid_slots(command, item), scores);
    softmax.weigh(scores, output);
#pragma unroll
    for (int i = 0; i < 16; ++i) weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ void weigh_values(std::uint32_t command, const Item& item, Weights& weights,
                               float (&output)[kD / 2]) {
    ptx::mbarrier_wait(full_v(command), Command::parity(command));
    if (p_.clear_pads && (command & Command::kPartial)) clear_pads(command, item);
    ptx::wgmma_pin(output);
    ptx::wgmma_pin(weights);
    ptx::wgmma_arrive();
    const std::uint64_t value = output_value_ + stage_offset(command);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ptx::wgmma<T, true>(output, weights + 4 * k, value + k * (16 * 128 / 16), true);
    }
    ptx::wgmma_commit();
  }

  /// This thread's part of operand A: rows warp*16 + lane/4 and 8 below, two columns a register.
  /// Rows without a token are zero.
  __device__ void load_query(const Item& item, int tile, int part, bool exists,
                             std::uint32_t (&query)[kD / 4]) {
    const Fragment rows = p_.query.fragment(item.batch, tile, part);
    const std::uint32_t sign = p_.negate_query ? 0x80008000U : 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int token = exists ? rows.token(warp_ * 16 + lane_ / 4 + 8 * r) : -1;
      const auto* from = reinterpret_cast<const std::uint32_t*>(
                             p_.q.row(item.batch, token < 0 ? 0 : token, item.head)) +
                         lane_ % 4;
#pragma unroll
      for (int i = 0; i < kD / 8; ++i) {
        query[i / 2 * 4 + i % 2 * 2 + r] = token < 0 ? 0 : __ldg(from + 4 * i) ^ sign;
      }
    }
  }

  /// The same as an operand in shared memory, rows of 128 bytes with swizzled 16-byte chunks.
  __device__ void store_query(const std::uint32_t (&query)[kD / 4]) {
    char* to = shared_ + Config::kQuery + index_ * Config::kFragmentBytes;
    ptx::barrier_sync(1 + index_, 128);  // all warps are done with the former item's rows
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_ * 16 + lane_ / 4 + 8 * r;
#pragma unroll
      for (int i = 0; i < kD / 8; ++i) {
        const int chunk = (i % 8) ^ (row % 8);
        *reinterpret_cast<std::uint32_t*>(to + i / 8 * 8192 + row * 128 + chunk * 16 +
                                          lane_ % 4 * 4) = query[i / 2 * 4 + i % 2 * 2 + r];
      }
    }
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + index_, 128);
  }

  __device__ static void clear(float (&output)[kD / 2]) {
#pragma unroll
    for (float& value : output) value = 0;
  }

  __device__ std::uint64_t valid_slots(std::uint32_t command, const Item& item) const {
    return p_.table[item.batch * p_.table_batch + Command::fragment(command)].valid;
  }

  __device__ void mask_scores(std::uint64_t valid, float (&scores)[32]) const {
    valid >>= lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if ((valid >> (i / 4 * 8 + i % 2) & 1) == 0) scores[i] = -INFINITY;
    }
  }

  /// Values whose weight is 0 must still be numbers. Every consumer of the stage writes the same
  /// zeros, so none waits for another.
  __device__ void clear_pads(std::uint32_t command, const Item& item) {
    const std::uint64_t valid = valid_slots(command, item);
    char* values = shared_ + Command::stage(command) * Config::kStageBytes + Config::kFragmentBytes;
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
    const std::uint32_t command =
        *const_cast<const volatile std::uint32_t*>(queue_ + popped_ % Config::kQueue);
    const bool there = (command & (3U << 30)) == Command::lap(popped_, Config::kQueue);
    return __shfl_sync(~0U, there ? command : 0, 0);
  }
  __device__ std::uint32_t wait_for_command() const {
    std::uint32_t command = peek();
    while (command == 0) {
      __nanosleep(20);
      command = peek();
    }
    return command;
  }
  __device__ std::uint32_t pop() {
    const std::uint32_t command = wait_for_command();
    ++popped_;
    return command;
  }
  __device__ void release(std::uint32_t command) {
    if (lane_ == 0) ptx::mbarrier_arrive(address_ + Config::kEmpty + 8 * Command::stage(command));
  }

  __device__ std::uint32_t full_k(std::uint32_t command) const {
    return address_ + Config::kFullK + 8 * Command::stage(command);
  }
  __device__ std::uint32_t full_v(std::uint32_t command) const {
    return address_ + Config::kFullV + 8 * Command::stage(command);
  }
  /// In descriptors, which count 16 bytes.
  __device__ static std::uint64_t stage_offset(std::uint32_t command) {
    return std::uint64_t{Command::stage(command)} * (Config::kStageBytes / 16);
  }
  /// Of 16 columns of a K-major operand: 32 bytes in a row, 64 rows of 128 bytes to the next half.
  __device__ static constexpr std::uint64_t depth_offset(int k) {
    return k / 4 * (8192 / 16) + k % 4 * 2;
  }

  const AttendParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int index_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  const std::uint32_t* queue_;
  std::uint32_t popped_ = 0;
  std::uint64_t scores_key_;
  std::uint64_t output_value_;
  std::uint64_t query_shared_;
};

}  // namespace vidsparse::cuda::sm90
