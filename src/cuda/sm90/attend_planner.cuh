#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared_word.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_plan.cuh"

namespace vidsparse::cuda::sm90 {

/// The planner warp: reads bitmaps and the fragment table, and writes the loaders' orders.
template <class Parameters, class Config>
class Planner {
 public:
  __device__ Planner(const Parameters& parameters, char* shared, std::uint32_t address)
      : p_(parameters),
        orders_(reinterpret_cast<Order*>(shared + Config::kOrderRing)),
        address_(address),
        plan_(shared, lane_) {}

  __device__ void run() {
    int wave = 0;
    for (int index = blockIdx.x; index < p_.items; index += gridDim.x, ++wave) {
      if (wave >= 2) {
        ptx::mbarrier_wait(address_ + Config::kCredit + 8 * (wave & 1), (wave / 2 + 1) & 1);
      }
      walk(Item::of(index, p_, Config::kConsumers), wave);
      single({.command = Command::kEnd, .word = pace_word((wave + 1) * p_.pace_steps)});
    }
    single({.word = Order::kStop});
  }

 private:
  /// What all fragments of a walk have in common.
  struct Source {
    const KeyFragment* table;
    int column_k;
    int column_v;
    std::uint32_t plane;
  };

  __device__ void walk(const Item& item, int wave) {
    const int rows = min(Config::kConsumers, p_.query_fragments - item.first_fragment);
    plan_.restart(rows);
    const std::uint32_t loads_before = loads_;
    const bool take_turns = !shared_;
    uses_ = 0;
    // Where there are narrow fragments they come last, in a round of their own.
    const int rounds = p_.narrow ? 2 : 1;
    const int steps = p_.pace_steps / (p_.members * rounds);
    int steps_before = wave * p_.pace_steps;
    for (int round = 0; round < rounds; ++round) {
      if (round > 0) single({.command = Command::kEnd | Command::kNarrowNext});
      for (int member = 0; member < p_.members; ++member, steps_before += steps) {
        walk_head(item, item.head * p_.members + member, rows, take_turns, round, steps_before);
      }
    }
    shared_ = __reduce_add_sync(~0U, uses_) * 2 > (loads_ - loads_before) * 3;
  }

  __device__ void walk_head(const Item& item, int head, int rows, bool take_turns, int round,
                            int steps_before) {
    const std::uint32_t* mask = p_.mask + item.batch * p_.mask_batch + head * p_.mask_head;
    const Source source = {p_.table + item.batch * p_.table_batch + head * p_.table_head,
                           p_.k.column(item.batch, head / p_.group),
                           p_.v.column(item.batch, head / p_.group),
                           static_cast<std::uint32_t>(item.batch * p_.heads * p_.members + head)};
    const KeyFragment* table = source.table;
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
    const auto valid_of = [&](std::uint32_t users, int key) {
      return users == 0 ? make_uint2(0, 0)
                        : __ldg(reinterpret_cast<const uint2*>(&table[key].valid));
    };
    // Both reads run ahead of their use.
    std::uint32_t users = users_of(lane_);
    uint2 valid = valid_of(users, lane_);
    std::uint32_t later_users = users_of(lane_ + 32);
    for (int base = 0; base < p_.key_fragments; base += 32) {
      const int key = base + lane_;
      const bool narrow = p_.narrow && (valid.x >> 16 | valid.y) == 0;
      const bool some = (valid.x | valid.y) != 0 && narrow == (round > 0);
      const std::uint32_t wanted = some ? users : 0;
      const bool whole = (valid.x & valid.y) == ~0U;
      users = later_users;
      valid = valid_of(users, key + 32);
      later_users = users_of(key + 64);
      const auto command = static_cast<std::uint32_t>(key) | (whole ? 0 : Command::kPartial);
      const int steps = p_.pace_fragments > 0 ? base / p_.pace_fragments + 1 : 0;
      const std::uint32_t pace = pace_word(steps_before + steps);
      uses_ += __popc(wanted);
      if (!take_turns) {
        emit(wanted != 0, command, wanted | pace, source);
        continue;
      }
      plan_.add(wanted, command);
      // Fragments of another head are named alike, so the plan is emptied at the end of each.
      plan_.take(base + 32 >= p_.key_fragments,
                 [&](bool ripe, std::uint32_t order, std::uint32_t whom) {
                   emit(ripe, order, whom | pace, source);
                 });
    }
  }

  __device__ std::uint32_t pace_word(int steps) const {
    return p_.pace_fragments > 0 ? static_cast<std::uint32_t>(steps) << 4 : 0;
  }

  /// Writes the orders of the lanes that have one, one after the other.
  __device__ void emit(bool ripe, std::uint32_t command, std::uint32_t word, const Source& source) {
    const std::uint32_t all = __ballot_sync(~0U, ripe);
    if (all == 0) return;
    uint2 at = make_uint2(0, 0);
    if (ripe) at = __ldg(reinterpret_cast<const uint2*>(source.table + Command::fragment(command)));
    wait_for_room(__popc(all));
    if (ripe) {
      const std::uint32_t load = loads_ + __popc(all & ((1U << lane_) - 1));
      const std::uint32_t number = written_ + __popc(all & ((1U << lane_) - 1));
      command |= Command::pack(load % Config::kKeySlots, load / Config::kKeySlots & 1,
                               load % Config::kValueSlots, load / Config::kValueSlots & 1);
      write(number,
            {.w = static_cast<std::int32_t>(at.x),
             .h = KeyFragment::height(at.y),
             .t = KeyFragment::frame(at.y),
             .place = static_cast<std::uint32_t>(KeyFragment::segment(at.y)) | source.plane << 4,
             .column_k = source.column_k,
             .column_v = source.column_v,
             .command = command,
             .word = word});
    }
    loads_ += __popc(all);
    written_ += __popc(all);
  }

  __device__ void single(const Order& order) {
    wait_for_room(1);
    if (lane_ == 0) write(written_, order);
    ++written_;
  }

  __device__ void write(std::uint32_t number, const Order& order) {
    const std::uint32_t at = number % Config::kOrders;
    auto* halves = reinterpret_cast<const uint4*>(&order);
    auto* to = reinterpret_cast<uint4*>(orders_ + at);
    to[0] = halves[0];
    *reinterpret_cast<uint2*>(to + 1) = make_uint2(halves[1].x, halves[1].y);
    reinterpret_cast<std::uint32_t*>(to)[6] = halves[1].z;
    // Its lap tells that the rest is there.
    ptx::store_release(address_ + Config::kOrderRing + at * sizeof(Order) + offsetof(Order, word),
                       order.word | Command::lap(number, Config::kOrders));
  }

  __device__ void wait_for_room(std::uint32_t count) const {
    const std::uint32_t needed = written_ + count - Config::kOrders;
    for (int loader = 0; loader < 2; ++loader) {
      const std::uint32_t done = address_ + Config::kDone + 4 * loader;
      while (static_cast<std::int32_t>(needed - ptx::load_acquire(done)) > 0) __nanosleep(100);
    }
    __syncwarp();
  }

  const Parameters& p_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  Order* orders_;
  std::uint32_t address_;
  Plan<Config> plan_;
  std::uint32_t loads_ = 0;    // fragments so far
  std::uint32_t uses_ = 0;     // this lane's, of the item
  bool shared_ = false;        // the former item's fragments had 1.5 consumers and more
  std::uint32_t written_ = 0;  // orders so far
};

}  // namespace vidsparse::cuda::sm90
