#pragma once

#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_pace.cuh"
#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_plan.cuh"

namespace vidsparse::cuda::sm90 {

/// The producer warp. Its lanes look at key fragments 32 at a time and plan the order; lane 0
/// loads. That is the loop's critical path, so it finds everything worked out.
template <class T, class Config>
class Producer {
 public:
  __device__ Producer(const AttendParameters<T>& parameters, char* shared, std::uint32_t address)
      : p_(parameters),
        queues_(reinterpret_cast<std::uint32_t*>(shared + Config::kQueues)),
        address_(address),
        pace_(parameters),
        plan_(shared, lane_) {}

  __device__ void run() {
    int wave = 0;
    for (int index = blockIdx.x; index < p_.items; index += gridDim.x, ++wave) {
      if (wave >= 2) {
        ptx::mbarrier_wait(address_ + Config::kCredit + 8 * (wave & 1), (wave / 2 + 1) & 1);
      }
      walk(Item::of(index, p_, Config::kConsumers), wave);
      if (lane_ == 0) {
#pragma unroll
        for (int c = 0; c < Config::kConsumers; ++c) push(c, Command::kEnd);
      }
    }
  }

 private:
  __device__ void walk(const Item& item, int wave) {
    const int rows = min(Config::kConsumers, p_.query_fragments - item.first_fragment);
    const std::uint32_t* mask = p_.mask + item.batch * p_.mask_batch + item.head * p_.mask_head;
    const KeyFragment* table = p_.table + item.batch * p_.table_batch;
    std::int64_t row_starts[Config::kConsumers];
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      row_starts[c] = p_.fragments_per_tile.quotient(item.first_fragment + c) * p_.mask_row;
    }
    // Who wants a key fragment, as bits.
    const auto users_of = [&](int key) {
      std::uint32_t users = 0;
      if (key >= p_.key_fragments) return users;
      const int tile = p_.fragments_per_tile.quotient(key);
#pragma unroll
      for (int c = 0; c < Config::kConsumers; ++c) {
        if (c < rows) users |= (__ldg(mask + row_starts[c] + (tile >> 5)) >> (tile & 31) & 1) << c;
      }
      return users;
    };
    const auto entry_of = [&](std::uint32_t users, int key) {
      return users == 0 ? make_uint4(0, 0, 0, 0)
                        : __ldg(reinterpret_cast<const uint4*>(table + key));
    };
    column_k_ = p_.k.column(item.batch, item.head / p_.group);
    column_v_ = p_.v.column(item.batch, item.head / p_.group);
    plan_.restart((1U << rows) - 1);
    // Both reads run ahead of their use.
    std::uint32_t users = users_of(lane_);
    uint4 entry = entry_of(users, lane_);
    std::uint32_t later_users = users_of(lane_ + 32);
    for (int base = 0; base < p_.key_fragments; base += 32) {
      const int key = base + lane_;
      const std::uint32_t wanted = (entry.z | entry.w) != 0 ? users : 0;
      const bool whole = (entry.z & entry.w) == ~0U;
      const typename Plan<Config>::Place place = {static_cast<std::int32_t>(entry.x), entry.y};
      users = later_users;
      entry = entry_of(users, key + 32);
      later_users = users_of(key + 64);
      plan_.add(wanted, place, static_cast<std::uint32_t>(key) | (whole ? 0 : Command::kPartial));
      if (lane_ == 0) pace_.step(wave, base);
      plan_.take(base + 32 >= p_.key_fragments,
                 [&](const auto& at, std::uint32_t command, std::uint32_t for_whom) {
                   load(at, command, for_whom);
                 });
    }
  }

  __device__ void load(const typename Plan<Config>::Place& at, std::uint32_t command,
                       std::uint32_t users) {
    const std::int32_t segment = KeyFragment::segment(at.place);
    const std::int32_t h = KeyFragment::height(at.place);
    const std::int32_t t = KeyFragment::frame(at.place);
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    command |= Command::pack(key_slot_, key_parity_, value_slot_, value_parity_);
    fill(Config::kFullK + 8 * key_slot_, Config::kEmptyK + 8 * key_slot_, key_parity_,
         Config::kKeys + key_slot_ * Config::kFragmentBytes, absent, p_.k.maps + segment, at.w, h,
         t, column_k_);
    fill(Config::kFullV + 8 * value_slot_, Config::kEmptyV + 8 * value_slot_, value_parity_,
         Config::kValues + value_slot_ * Config::kFragmentBytes, absent, p_.v.maps + segment, at.w,
         h, t, column_v_);
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      if (users >> c & 1) push(c, command);
    }
    advance(key_slot_, key_parity_, Config::kKeySlots);
    advance(value_slot_, value_parity_, Config::kValueSlots);
  }

  __device__ void fill(std::uint32_t full, std::uint32_t empty, std::uint32_t parity,
                       std::uint32_t to, std::uint32_t absent, const CUtensorMap* map, int w, int h,
                       int t, int column) {
    ptx::mbarrier_wait(address_ + empty, parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(address_ + full, Config::kFragmentBytes);
    ptx::tma_load(address_ + to, map, address_ + full, 0, w, h, t, column);
    if (absent != 0) ptx::mbarrier_arrive(address_ + empty, absent);
  }

  __device__ static void advance(std::uint32_t& slot, std::uint32_t& parity, std::uint32_t slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }

  __device__ void push(int consumer, std::uint32_t command) {
    volatile std::uint32_t* queue = queues_ + consumer * Config::kQueue;
    const std::uint32_t count = pushed_[consumer]++;
    queue[count % Config::kQueue] = command | Command::lap(count, Config::kQueue);
  }

  const AttendParameters<T>& p_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  std::uint32_t* queues_;
  std::uint32_t address_;
  Pace<T> pace_;
  Plan<Config> plan_;
  int column_k_ = 0;
  int column_v_ = 0;
  std::uint32_t key_slot_ = 0;
  std::uint32_t key_parity_ = 0;
  std::uint32_t value_slot_ = 0;
  std::uint32_t value_parity_ = 0;
  std::uint32_t pushed_[Config::kConsumers] = {};
};

}  // namespace vidsparse::cuda::sm90
