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
    for (std::uint32_t number = 0;;) {
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
      std::uint32_t orders = 1;
      if (Config::kEdges && (word & Order::kEdges)) {
        load_boxes(order, number, users);
        orders = Config::kSlotOrders;
      } else if (!end) {
        load(order, users);
      }
      if constexpr (IsValue) {
        // Not before K is under way too: a consumer that waits for a slot whose former copy has not
        // ended could take that end for the one it waits for. K is a step behind at most.
        while (static_cast<std::int32_t>(ptx::load_acquire(done_) - number) <= 0) {
        }
        tell(users, order.command);
      }
      number += orders;
      ptx::store_release(done_ + 4 * IsValue, number);
    }
  }

 private:
  static constexpr bool kWithRows = !IsValue && Config::kRowBytes > 0;
  static constexpr std::uint32_t kSlotBytes =
      Config::kFragmentBytes + (kWithRows ? Config::kRowBytes : 0);

  /// The slot an order fills and its barriers.
  struct Target {
    std::uint32_t slot;
    std::uint32_t parity;
    std::uint32_t full;
    std::uint32_t empty;
  };

  __device__ Target target(const Order& order) const {
    const std::uint32_t slot =
        IsValue ? Command::value_slot(order.command) : Command::key_slot(order.command);
    const std::uint32_t parity =
        IsValue ? Command::value_parity(order.command) : Command::key_parity(order.command);
    return {slot, parity, full_ + 8 * slot, empty_ + 8 * slot};
  }
  __device__ const CUtensorMap* map(std::uint32_t index) const {
    return (IsValue ? p_.v.maps : p_.k.maps) + index;
  }

  __device__ void load(const Order& order, std::uint32_t users) {
    const auto [slot, parity, full, empty] = target(order);
    ptx::mbarrier_wait(empty, parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, kSlotBytes);
    if constexpr (kWithRows) {
      const std::int64_t fragment = std::int64_t{Order::plane(order.place)} * p_.key_fragments +
                                    Command::fragment(order.command);
      ptx::bulk_load(rows_ + slot * Config::kRowBytes, p_.rows + fragment * (Config::kRowBytes / 4),
                     Config::kRowBytes, full);
    }
    ptx::tma_load(slots_ + slot * Config::kFragmentBytes, map(Order::map(order.place)), full, 0,
                  order.w, order.h, order.t, IsValue ? order.column_v : order.column_k);
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    if (absent != 0) ptx::mbarrier_arrive(empty, absent);
  }

  /// Edge boxes that fill a slot together, and their rows: orders `number` and following.
  __device__ void load_boxes(const Order& order, std::uint32_t number, std::uint32_t users) {
    const auto [slot, parity, full, empty] = target(order);
    const auto words = [&](std::uint32_t entry) {
      return *reinterpret_cast<const uint4*>(orders_ + (number + entry) % Config::kOrders);
    };
    const uint4 w = words(0);
    const uint4 place = words(1);
    uint4 row = {};
    if constexpr (kWithRows) row = words(2);
    ptx::mbarrier_wait(empty, parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, kSlotBytes);
    load_box(0, slot, full, order, w.x, place.x, row.x, place.y == Order::kNoBox);
    load_box(1, slot, full, order, w.y, place.y, row.y, place.z == Order::kNoBox);
    load_box(2, slot, full, order, w.z, place.z, row.z, place.w == Order::kNoBox);
    load_box(3, slot, full, order, w.w, place.w, row.w, false);
    const std::uint32_t absent = 4 * (Config::kConsumers - __popc(users));
    if (absent != 0) ptx::mbarrier_arrive(empty, absent);
  }

  __device__ void load_box(std::uint32_t unit, std::uint32_t slot, std::uint32_t full,
                           const Order& order, std::uint32_t w, std::uint32_t place,
                           std::uint32_t row, bool two_units) {
    if (place == Order::kNoBox) return;
    if constexpr (kWithRows) {
      const float* lse = p_.rows + std::int64_t{row} * (Order::kRowStep / 4);
      const std::uint32_t at = rows_ + slot * Config::kRowBytes + unit * Order::kRowStep;
      const std::uint32_t bytes = two_units ? 2 * Order::kRowStep : Order::kRowStep;
      ptx::bulk_load(at, lse, bytes, full);
      ptx::bulk_load(at + Config::kRowBytes / 2, lse + kFragment, bytes, full);
    }
    const std::uint32_t to = slots_ + slot * Config::kFragmentBytes + unit * (EdgeBox::kUnit * 128);
#pragma unroll
    for (int half = 0; half < Config::kHeadDim / 64; ++half) {
      ptx::tma_load(to + half * 8192, map(KeyFragment::map(place)), full, 0,
                    static_cast<std::int32_t>(w), KeyFragment::height(place),
                    KeyFragment::frame(place), (IsValue ? order.column_v : order.column_k) + half);
    }
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
