#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared_word.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_pace.cuh"
#include "cuda/sm90/attend_plan.cuh"

namespace vidsparse::cuda::sm90 {

/// The thread that loads K, or the one that loads V and then tells the consumers.
template <class Parameters, class Config, bool IsValue>
class Loader {
 public:
  __device__ Loader(const Parameters& parameters, char* shared, std::uint32_t address)
      : p_(parameters),
        orders_(reinterpret_cast<const Order*>(shared + Config::kOrderRing)),
        words_(address + Config::kOrderRing + offsetof(Order, word)),
        done_(address + Config::kDone),
        queues_(address + Config::kQueues),
        full_(address + (IsValue ? Config::kFullV : Config::kFullK)),
        empty_(address + (IsValue ? Config::kEmptyV : Config::kEmptyK)),
        slots_(address + (IsValue ? Config::kValues : Config::kKeys)),
        rows_(address + Config::kRowSlots) {}

  __device__ void run() {
    Pace<Parameters> pace(p_);
    for (std::uint32_t number = 0;; ++number) {
      const std::uint32_t at = number % Config::kOrders;
      const std::uint32_t lap = Command::lap(number, Config::kOrders);
      std::uint32_t word;
      while (((word = ptx::load_acquire(words_ + at * sizeof(Order))) & (3U << 30)) != lap) {
        __nanosleep(20);
      }
      if (word & Order::kStop) return;
      const Order order = orders_[at];
      const bool end = Command::is_end(order.command);
      const std::uint32_t users = end ? 7 : Order::users(word);
      if constexpr (!IsValue) pace.step(Order::pace_steps(word), end);
      bool whole = true;  // else more comes into the same slot
      if (Config::kEdges && !end && Order::is_edge(order.place)) {
        load_part(order, users);
        whole = (order.place & Order::kLast) != 0;
      } else if (!end) {
        load(order, users);
      }
      if constexpr (IsValue) {
        // Not before K is under way too: a consumer that waits for a slot whose former copy has not
        // ended could take that end for the one it waits for. K is a step behind at most.
        while (static_cast<std::int32_t>(ptx::load_acquire(done_) - number) <= 0) {
        }
        if (whole) tell(users, order.command);
      }
      ptx::store_release(done_ + 4 * IsValue, number + 1);
    }
  }

 private:
  static constexpr bool kRows = Config::kRowBytes > 0;
  static constexpr bool kWithRows = !IsValue && kRows;
  static constexpr std::uint32_t kSlotBytes =
      Config::kFragmentBytes + (kWithRows ? Config::kRowBytes : 0);

  /// The slot an order fills and its barriers.
  struct Target {
    std::uint32_t slot;
    std::uint32_t parity;
    std::uint32_t full;
    std::uint32_t empty;
    const CUtensorMap* map;
  };

  __device__ Target target(const Order& order) const {
    const std::uint32_t slot =
        IsValue ? Command::value_slot(order.command) : Command::key_slot(order.command);
    const std::uint32_t parity =
        IsValue ? Command::value_parity(order.command) : Command::key_parity(order.command);
    return {slot, parity, full_ + 8 * slot, empty_ + 8 * slot,
            (IsValue ? p_.v.maps : p_.k.maps) + Order::map(order.place)};
  }

  __device__ void load(const Order& order, std::uint32_t users) {
    const auto [slot, parity, full, empty, map] = target(order);
    ptx::mbarrier_wait(empty, parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, kSlotBytes);
    if constexpr (kWithRows) {
      const std::int64_t fragment = std::int64_t{Order::plane(order.place)} * p_.key_fragments +
                                    Command::fragment(order.command);
      ptx::bulk_load(rows_ + slot * Config::kRowBytes, p_.rows + fragment * (Config::kRowBytes / 4),
                     Config::kRowBytes, full);
    }
    ptx::tma_load(slots_ + slot * Config::kFragmentBytes, map, full, 0, order.w, order.h, order.t,
                  IsValue ? order.column_v : order.column_k);
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    if (absent != 0) ptx::mbarrier_arrive(empty, absent);
  }

  /// An edge box, which fills a slot together with others, and its rows.
  __device__ void load_part(const Order& order, std::uint32_t users) {
    const auto [slot, parity, full, empty, map] = target(order);
    if (order.place & Order::kFirst) {
      ptx::mbarrier_wait(empty, parity ^ 1);
      ptx::mbarrier_arrive_expect_tx(full, kSlotBytes);
    }
    if constexpr (kWithRows) {
      const float* lse =
          p_.rows + std::int64_t{static_cast<std::uint32_t>(order.t)} * (Order::kRowStep / 4);
      const std::uint32_t at =
          rows_ + slot * Config::kRowBytes + Order::unit(order.place) * Order::kRowStep;
      const std::uint32_t bytes =
          order.place & Order::kTwoUnits ? 2 * Order::kRowStep : Order::kRowStep;
      ptx::bulk_load(at, lse, bytes, full);
      ptx::bulk_load(at + Config::kRowBytes / 2, lse + kFragment, bytes, full);
    }
    const auto place = static_cast<std::uint32_t>(order.h);
    const int h = kRows ? KeyFragment::height(place) : order.h;
    const int t = kRows ? KeyFragment::frame(place) : order.t;
    const std::uint32_t to =
        slots_ + slot * Config::kFragmentBytes + Order::unit(order.place) * (EdgeBox::kUnit * 128);
#pragma unroll
    for (int half = 0; half < Config::kHeadDim / 64; ++half) {
      ptx::tma_load(to + half * 8192, map, full, 0, order.w, h, t,
                    (IsValue ? order.column_v : order.column_k) + half);
    }
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    if ((order.place & Order::kLast) && absent != 0) ptx::mbarrier_arrive(empty, absent);
  }

  __device__ void tell(std::uint32_t users, std::uint32_t command) {
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      if ((users >> c & 1) == 0) continue;
      const std::uint32_t at = c * Config::kQueue + told_[c] % Config::kQueue;
      ptx::store_release(queues_ + 4 * at, command | Command::lap(told_[c], Config::kQueue));
      ++told_[c];
    }
  }

  const Parameters& p_;
  const Order* orders_;
  std::uint32_t words_;
  std::uint32_t done_;  ///< orders K's loader is done with; then V's
  std::uint32_t queues_;
  std::uint32_t full_;
  std::uint32_t empty_;
  std::uint32_t slots_;
  std::uint32_t rows_;                           ///< what comes with each slot of K, if anything
  std::uint32_t told_[Config::kConsumers] = {};  ///< commands, by V's loader
};

}  // namespace vidsparse::cuda::sm90
