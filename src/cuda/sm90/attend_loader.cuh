#pragma once

#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_pace.cuh"
#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_plan.cuh"

namespace vidsparse::cuda::sm90 {

/// The thread that loads K, or the one that loads V and then tells the consumers. (Not K's: a
/// command must not be read before both copies are under way, or a consumer that waits for its slot
/// could take the end of an older copy for its own.)
template <class T, class Config, bool IsValue>
class Loader {
 public:
  __device__ Loader(const AttendParameters<T>& parameters, char* shared, std::uint32_t address)
      : p_(parameters),
        orders_(reinterpret_cast<const Order*>(shared + Config::kOrderRing)),
        read_(reinterpret_cast<std::uint32_t*>(shared + Config::kRead) + IsValue),
        queues_(reinterpret_cast<std::uint32_t*>(shared + Config::kQueues)),
        full_(address + (IsValue ? Config::kFullV : Config::kFullK)),
        empty_(address + (IsValue ? Config::kEmptyV : Config::kEmptyK)),
        slots_(address + (IsValue ? Config::kValues : Config::kKeys)) {}

  __device__ void run() {
    Pace<T> pace(p_);
    for (std::uint32_t number = 0;; ++number) {
      const Order* order = orders_ + number % Config::kOrders;
      std::uint32_t word;
      while (((word = *const_cast<const volatile std::uint32_t*>(&order->word)) & (3U << 30)) !=
             Command::lap(number, Config::kOrders)) {
        __nanosleep(20);
      }
      if (word & Order::kStop) return;
      asm volatile("" ::: "memory");  // no read of the rest before, none after
      const Order now = *order;
      asm volatile("" ::: "memory");
      *const_cast<volatile std::uint32_t*>(read_) = number + 1;
      if constexpr (!IsValue) pace.step(Order::pace_steps(word));
      if (now.command & Command::kEnd) {
        if constexpr (IsValue) tell(7, Command::kEnd);
        continue;
      }
      load(now, Order::users(word));
    }
  }

 private:
  __device__ void load(const Order& order, std::uint32_t users) {
    const std::uint32_t slot =
        IsValue ? Command::value_slot(order.command) : Command::key_slot(order.command);
    const std::uint32_t parity =
        IsValue ? Command::value_parity(order.command) : Command::key_parity(order.command);
    const std::uint32_t full = full_ + 8 * slot;
    const std::uint32_t empty = empty_ + 8 * slot;
    const CUtensorMap* map = (IsValue ? p_.v.maps : p_.k.maps) + order.segment;
    ptx::mbarrier_wait(empty, parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, Config::kFragmentBytes);
    ptx::tma_load(slots_ + slot * Config::kFragmentBytes, map, full, 0, order.w, order.h, order.t,
                  IsValue ? order.column_v : order.column_k);
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    if (absent != 0) ptx::mbarrier_arrive(empty, absent);
    if constexpr (IsValue) tell(users, order.command);
  }

  __device__ void tell(std::uint32_t users, std::uint32_t command) {
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      if ((users >> c & 1) == 0) continue;
      volatile std::uint32_t* queue = queues_ + c * Config::kQueue;
      queue[told_[c] % Config::kQueue] = command | Command::lap(told_[c], Config::kQueue);
      ++told_[c];
    }
  }

  const AttendParameters<T>& p_;
  const Order* orders_;
  std::uint32_t* read_;
  std::uint32_t* queues_;
  std::uint32_t full_;
  std::uint32_t empty_;
  std::uint32_t slots_;
  std::uint32_t told_[Config::kConsumers] = {};
};

}  // namespace vidsparse::cuda::sm90
