#pragma once

#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_pace.cuh"
#include "cuda/sm90/attend_parameters.hpp"

namespace vidsparse::cuda::sm90 {

/// Where an item lies.
struct Item {
  int batch;
  int head;
  int first_fragment;  ///< of its three query fragments

  template <class T>
  __device__ static Item of(int index, const AttendParameters<T>& p, int consumers) {
    const int row = index / p.items_per_head;
    const int batch = row / p.heads;
    return {batch, row - batch * p.heads, (index - row * p.items_per_head) * consumers};
  }
};

/// The producer warp. All lanes look at `kPlan` key fragments at a time and write down those that a
/// consumer wants; one lane then loads them. That lane is the loop's critical path, so it finds
/// everything worked out.
template <class T, class Config>
class Producer {
 public:
  __device__ Producer(const AttendParameters<T>& parameters, char* shared, std::uint32_t address)
      : p_(parameters), shared_(shared), address_(address), pace_(parameters) {}

  __device__ void run() {
    int wave = 0;
    for (int index = blockIdx.x; index < p_.items; index += gridDim.x, ++wave) {
      if (wave >= 2) ptx::mbarrier_wait(address_ + Config::kCredit + 8 * (wave & 1), (wave / 2 + 1) & 1);
      walk(Item::of(index, p_, Config::kConsumers), wave);
      if (lane_ == 0) {
#pragma unroll
        for (int c = 0; c < Config::kConsumers; ++c) push(c, Command::kEnd);
      }
    }
  }

 private:
  /// What a lane writes down for the loading lane.
  struct alignas(16) Planned {
    std::int32_t w;
    std::uint32_t place;
    std::uint32_t command;
    std::uint32_t users;  ///< bit c: consumer c
  };

  __device__ void walk(const Item& item, int wave) {
    const std::uint32_t* rows[Config::kConsumers];
    std::uint32_t next[Config::kConsumers];
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      const int fragment = item.first_fragment + c;
      const std::int64_t tile = p_.fragments_per_tile.quotient(fragment);
      rows[c] = fragment >= p_.query_fragments
                    ? nullptr
                    : p_.mask + item.batch * p_.mask_batch + item.head * p_.mask_head +
                          tile * p_.mask_row;
    }
    const auto look = [&](int key) {
      const int tile = p_.fragments_per_tile.quotient(key);
#pragma unroll
      for (int c = 0; c < Config::kConsumers; ++c) {
        const bool inside = rows[c] != nullptr && key < p_.key_fragments;
        next[c] = inside ? __ldg(rows[c] + (tile >> 5)) >> (tile & 31) & 1 : 0;
      }
    };
    const KeyFragment* table = p_.table + item.batch * p_.table_batch;
    const int column_k = p_.k.column(item.batch, item.head / p_.group);
    const int column_v = p_.v.column(item.batch, item.head / p_.group);
    auto* planned = reinterpret_cast<Planned*>(shared_ + Config::kPlanned);
    look(lane_);
    for (int base = 0; base < p_.key_fragments; base += Config::kPlan) {
      std::uint32_t users = 0;
#pragma unroll
      for (int c = 0; c < Config::kConsumers; ++c) users |= next[c] << c;
      KeyFragment entry;
      if (users != 0) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(table + base + lane_));
        entry.w = static_cast<std::int32_t>(words.x);
        entry.place = words.y;
        entry.valid = words.z | static_cast<std::uint64_t>(words.w) << 32;
        if (entry.valid == 0) users = 0;
      }
      look(base + Config::kPlan + lane_);
      const std::uint32_t wanted = __ballot_sync(~0U, users != 0);
      if (users != 0) {
        const std::uint32_t command = static_cast<std::uint32_t>(base + lane_) |
                                      (entry.valid == ~std::uint64_t{0} ? 0 : Command::kPartial);
        planned[__popc(wanted & ((1U << lane_) - 1))] = {entry.w, entry.place, command, users};
      }
      __syncwarp();
      if (lane_ == 0) {
        pace_.step(wave, base);
        const int count = __popc(wanted);
        for (int i = 0; i < count; ++i) load(planned[i], column_k, column_v);
      }
      __syncwarp();
    }
  }

  __device__ void load(const Planned& planned, int column_k, int column_v) {
    const std::uint32_t full_k = address_ + Config::kFullK + 8 * stage_;
    const std::uint32_t full_v = address_ + Config::kFullV + 8 * stage_;
    const std::uint32_t empty = address_ + Config::kEmpty + 8 * stage_;
    const std::uint32_t to = address_ + stage_ * Config::kStageBytes;
    const std::int32_t segment = KeyFragment::segment(planned.place);
    const std::int32_t h = KeyFragment::height(planned.place);
    const std::int32_t t = KeyFragment::frame(planned.place);
    ptx::mbarrier_wait(empty, parity_ ^ 1);
    ptx::mbarrier_arrive_expect_tx(full_k, Config::kFragmentBytes);
    ptx::tma_load(to, p_.k.maps + segment, full_k, 0, planned.w, h, t, column_k);
    ptx::mbarrier_arrive_expect_tx(full_v, Config::kFragmentBytes);
    ptx::tma_load(to + Config::kFragmentBytes, p_.v.maps + segment, full_v, 0, planned.w, h, t,
                  column_v);
    const std::uint32_t absent = Config::kConsumers - __popc(planned.users);
    if (absent != 0) ptx::mbarrier_arrive(empty, 4 * absent);
    const std::uint32_t command = planned.command | Command::pack(stage_, parity_);
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      if (planned.users >> c & 1) push(c, command);
    }
    if (++stage_ == Config::kStages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

  __device__ void push(int consumer, std::uint32_t command) {
    volatile std::uint32_t* queue = reinterpret_cast<std::uint32_t*>(shared_ + Config::kQueues) +
                                    consumer * Config::kQueue;
    const std::uint32_t count = pushed_[consumer]++;
    queue[count % Config::kQueue] = command | Command::lap(count, Config::kQueue);
  }

  const AttendParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  Pace<T> pace_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  std::uint32_t stage_ = 0;
  std::uint32_t parity_ = 0;
  std::uint32_t pushed_[Config::kConsumers] = {};
};

}  // namespace vidsparse::cuda::sm90
