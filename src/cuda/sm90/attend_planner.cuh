#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared_word.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_plan.cuh"
#include "cuda/sm90/item.cuh"

namespace vidsparse::cuda::sm90 {

/// The planner warp: reads bitmaps and the fragment table, and writes the loaders' orders.
template <class Parameters, class Config>
class Planner {
 public:
  __device__ Planner(const Parameters& parameters, char* shared, std::uint32_t address)
      : p_(parameters),
        orders_(reinterpret_cast<Order*>(shared + Config::kOrderRing)),
        masks_(reinterpret_cast<std::uint64_t*>(shared + Config::kMasks)),
        held_(reinterpret_cast<Piece*>(shared + Config::kHeld)),
        address_(address),
        turns_(address),
        plan_(shared, lane_) {}

  __device__ void run() {
    int index = static_cast<int>(blockIdx.x);
    for (int wave = 0;; ++wave) {
      if (wave >= 2) {
        ptx::mbarrier_wait(address_ + Config::kCredit + 8 * (wave & 1), (wave / 2 + 1) & 1);
      }
      if (wave > 0 && lane_ == 0) turns_.tell(wave, index);
      if (index >= p_.items) break;
      const int steps = index / static_cast<int>(gridDim.x) * p_.pace_steps;
      walk(Item::of(index, p_, Config::kConsumers), steps);
      int next = 0;
      if (lane_ == 0) next = static_cast<int>(atomicAdd(p_.next, 1U));
      single({.command = Command::kEnd, .word = pace_word(steps + p_.pace_steps)});
      index = __shfl_sync(~0U, next, 0) + static_cast<int>(gridDim.x);
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

  /// `steps_before`: of the pace.
  __device__ void walk(const Item& item, int steps_before) {
    plan_.restart(item.rows);
    const int steps = p_.pace_steps / p_.members;
    for (int member = 0; member < p_.members; ++member, steps_before += steps) {
      walk_head(item, item.head * p_.members + member, steps_before);
    }
  }

  __device__ void walk_head(const Item& item, int head, int steps_before) {
    const std::uint32_t* mask = p_.mask + item.batch * p_.mask_batch + head * p_.mask_head;
    const Source source = {p_.table + item.batch * p_.table_batch + head * p_.table_head,
                           p_.k.column(item.batch, head / p_.group),
                           p_.v.column(item.batch, head / p_.group),
                           static_cast<std::uint32_t>(item.batch * p_.heads * p_.members + head)};
    const KeyFragment* table = source.table;
    std::int64_t row_starts[Config::kConsumers];
#pragma unroll
    for (int c = 0; c < Config::kConsumers; ++c) {
      row_starts[c] = p_.own_tile(item.batch, item.head, item.first_turn + c) * p_.mask_row;
    }
    const bool take_turns = differ(mask, row_starts, item.rows);
    // Who wants a key fragment, as bits.
    const auto users_of = [&](int key) {
      std::uint32_t users = 0;
      if (key >= p_.key_fragments) return users;
      const int tile = p_.fragments_per_tile.quotient(key);
#pragma unroll
      for (int c = 0; c < Config::kConsumers; ++c) {
        if (c >= item.rows) continue;
        users |= (__ldg(mask + row_starts[c] + (tile >> 5)) >> (tile & 31) & 1) << c;
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
      const bool some = (valid.x | valid.y) != 0;
      const bool edge = Config::kEdges && KeyFragment::is_edge(valid.y);
      const std::uint32_t wanted = some && !edge ? users : 0;
      const std::uint32_t at_edge = edge ? users : 0;
      const std::int32_t units = KeyFragment::units(valid.y);
      const bool whole = (valid.x & valid.y) == ~0U;
      users = later_users;
      valid = valid_of(users, key + 32);
      later_users = users_of(key + 64);
      const auto command = static_cast<std::uint32_t>(key) | (whole ? 0 : Command::kPartial);
      const int steps = p_.pace_fragments > 0 ? base / p_.pace_fragments + 1 : 0;
      const std::uint32_t pace = pace_word(steps_before + steps);
      if (!take_turns) {
        emit(wanted != 0, command, wanted | pace, source);
      } else {
        plan_.add(wanted, command);
        // Fragments of another head are named alike, so the plan is emptied at the end of each.
        plan_.take(base + 32 >= p_.key_fragments,
                   [&](bool ripe, std::uint32_t order, std::uint32_t whom) {
                     emit(ripe, order, whom | pace, source);
                   });
      }
      if constexpr (Config::kEdges) {
        hold(at_edge, units, base, pace, source);
        if (base + 32 >= p_.key_fragments) {
#pragma unroll 1
          for (int list = 0; list < kLists; ++list) flush(list, pace, source);
        }
      }
    }
  }

  /// Whether a tile of these lists has fewer than 1.5 consumers.
  __device__ bool differ(const std::uint32_t* mask,
                         const std::int64_t (&row_starts)[Config::kConsumers], int rows) const {
    const int words = (p_.fragments_per_tile.quotient(p_.key_fragments) + 31) / 32;
    int uses = 0;
    int tiles = 0;
#pragma unroll 1
    for (int word = lane_; word < words; word += 32) {
      std::uint32_t all = 0;
#pragma unroll
      for (int c = 0; c < Config::kConsumers; ++c) {
        if (c >= rows) continue;
        const std::uint32_t list = __ldg(mask + row_starts[c] + word);
        uses += __popc(list);
        all |= list;
      }
      tiles += __popc(all);
    }
    return __reduce_add_sync(~0U, uses) * 2 <= __reduce_add_sync(~0U, tiles) * 3;
  }

  /// An edge box as it waits for others to fill a slot with.
  struct alignas(16) Piece {
    std::int32_t w;
    std::uint32_t place;
    std::uint32_t valid;  ///< slots
    std::uint32_t row;    ///< see Order
  };
  static_assert(sizeof(Piece) == Config::kPieceBytes && Config::kHeld % alignof(Piece) == 0);

  /// Edge boxes wait until they fill a slot, those of one unit and those of two apart: what all
  /// consumers want in one list, others in each of their consumers'. This lane's is fragment
  /// `first` + lane, which takes `units` of a slot.
  __device__ void hold(std::uint32_t users, std::int32_t units, int first, std::uint32_t pace,
                       const Source& source) {
    if (__ballot_sync(~0U, users != 0) == 0) return;
    Piece own = {};
    if (users != 0) {
      const int fragment = first + lane_;
      const int4 at = __ldg(reinterpret_cast<const int4*>(source.table + fragment));
      own = {at.x, static_cast<std::uint32_t>(at.y), static_cast<std::uint32_t>(at.z),
             (source.plane * p_.key_fragments + fragment) * (Config::kRowBytes / Order::kRowStep)};
    }
#pragma unroll 1
    for (int list = 0; list < kLists; ++list) {
      const bool in = users == kAll ? list == Config::kConsumers : (users >> list & 1) != 0;
#pragma unroll 1
      for (int size = 1; size <= 2; ++size)
        join(list, size, in && units == size, own, pace, source);
    }
  }

  /// Adds the pieces of the lanes that are `in` to a list, and fills as many slots as they do.
  __device__ void join(int list, int size, bool in, const Piece& own, std::uint32_t pace,
                       const Source& source) {
    const std::uint32_t joining = __ballot_sync(~0U, in);
    if (joining == 0) return;
    Piece* held = held_of(list, size);
    const int waiting = waiting_in(list, size);
    const int all = waiting + size * __popc(joining);
    const int unit = waiting + size * __popc(joining & ((1U << lane_) - 1));  // of this lane's
    const int slots = all / kUnits;
#pragma unroll 1
    for (int first = 0; first < slots; first += kSlotsAtOnce) {
      const int count = min(slots - first, kSlotsAtOnce);
      const int slot = unit / kUnits - first;
      wait_for_room(count * Config::kSlotOrders);
      if (first == 0 && lane_ * size < waiting) put(0, lane_ * size, size, held[lane_]);
      if (in && slot >= 0 && slot < count) put(slot, unit % kUnits, size, own);
      order_slots(count, list, pace, source);
    }
    // At most three pieces of one unit, or one of two, are left.
    if (in && unit >= slots * kUnits) held[unit % kUnits] = own;
    set_waiting(list, size, all % kUnits);
    __syncwarp();
  }

  /// Loads what a list holds, and nothing in the rest of its slots.
  __device__ void flush(int list, std::uint32_t pace, const Source& source) {
    int ones = waiting_in(list, 1);
    bool two = waiting_in(list, 2) > 0;
#pragma unroll 1
    while (two || ones > 0) {  // at most twice
      const int begin = two ? 2 : 0;
      const int end = min(begin + ones, kUnits);
      const Piece* held = held_of(list, 1) + ones - (end - begin);
      wait_for_room(Config::kSlotOrders);
      if (two && lane_ == 0) put(0, 0, 2, *held_of(list, 2));
      if (lane_ >= begin && lane_ < end) put(0, lane_, 1, held[lane_ - begin]);
      if (lane_ >= end && lane_ < kUnits && lane_ % p_.filler_units == 0) {
        // Left of the grid there is nothing. Its rows without a weight are those behind the box of
        // another fragment.
        const std::uint32_t row = two ? held_of(list, 2)->row + 2 : held->row + 1;
        put(0, lane_, p_.filler_units, {-kFragment, KeyFragment::pack(0, 0, kFiller), 0, row});
      }
      order_slots(1, list, pace, source);
      ones -= end - begin;
      two = false;
    }
    set_waiting(list, 1, 0);
    set_waiting(list, 2, 0);
  }

  /// Writes a box into the orders of a slot, counted from the next on.
  __device__ void put(int slot, int unit, int size, const Piece& piece) {
    const std::uint32_t number = written_ + slot * Config::kSlotOrders;
    const auto words = [&](std::uint32_t entry) {
      return reinterpret_cast<std::uint32_t*>(orders_ + (number + entry) % Config::kOrders) + unit;
    };
    auto* valid = reinterpret_cast<std::uint16_t*>(masks_ + (loads_ + slot) % Config::kMaskRing);
    words(0)[0] = static_cast<std::uint32_t>(piece.w);
    words(1)[0] = piece.place;
    if constexpr (Config::kRowBytes > 0) words(2)[0] = piece.row;
    valid[unit] = static_cast<std::uint16_t>(piece.valid);
    if (size == 2) {
      words(1)[1] = Order::kNoBox;
      valid[unit + 1] = static_cast<std::uint16_t>(piece.valid >> 16);
    }
  }

  /// Gives the orders of the next `count` slots, whose boxes are written.
  __device__ void order_slots(int count, int list, std::uint32_t pace, const Source& source) {
    __syncwarp();
    if (lane_ < count) {
      const std::uint32_t load = loads_ + lane_;
      const std::uint32_t number = written_ + lane_ * Config::kSlotOrders;
      std::uint32_t command = place_of(load);
      if constexpr (Config::kTellsMasks) command |= load % Config::kMaskRing;
      if (~masks_[load % Config::kMaskRing] != 0) command |= Command::kPartial;
      // Nobody waits for these words, but a former lap's could be taken for a later one's.
      for (std::uint32_t more = number + 1; more < number + Config::kSlotOrders; ++more) {
        orders_[more % Config::kOrders].word = Command::lap(more, Config::kOrders);
      }
      Order& order = orders_[number % Config::kOrders];
      order.column_k = source.column_k;
      order.column_v = source.column_v;
      order.command = command;
      publish(number, (list == Config::kConsumers ? kAll : 1U << list) | Order::kEdges | pace);
    }
    loads_ += count;
    written_ += count * Config::kSlotOrders;
  }

  __device__ Piece* held_of(int list, int size) const {
    return held_ + kUnits * list + (size == 2 ? kUnits - 1 : 0);
  }
  __device__ int waiting_in(int list, int size) const {
    return static_cast<int>(waiting_ >> (8 * list + 4 * (size - 1)) & 15);
  }
  __device__ void set_waiting(int list, int size, int count) {
    const int at = 8 * list + 4 * (size - 1);
    waiting_ = (waiting_ & ~(15U << at)) | static_cast<std::uint32_t>(count) << at;
  }

  /// A load's part of a command.
  __device__ static std::uint32_t place_of(std::uint32_t load) {
    return Command::pack(load % Config::kKeySlots, load / Config::kKeySlots & 1,
                         load % Config::kValueSlots, load / Config::kValueSlots & 1);
  }

  __device__ std::uint32_t pace_word(int steps) const {
    return p_.pace_fragments > 0 ? Order::pace(steps) : 0;
  }

  /// Writes the orders of the lanes that have one, one after the other.
  __device__ void emit(bool ripe, std::uint32_t command, std::uint32_t word, const Source& source) {
    const std::uint32_t all = __ballot_sync(~0U, ripe);
    if (all == 0) return;
    uint4 at = make_uint4(0, 0, 0, 0);
    if (ripe) at = __ldg(reinterpret_cast<const uint4*>(source.table + Command::fragment(command)));
    wait_for_room(__popc(all));
    if (ripe) {
      const std::uint32_t load = loads_ + __popc(all & ((1U << lane_) - 1));
      const std::uint32_t number = written_ + __popc(all & ((1U << lane_) - 1));
      command |= place_of(load);
      if constexpr (Config::kTellsMasks) {
        if (command & Command::kPartial) write_mask(load, at.z, at.w);
        command = Command::with_fragment(command, load % Config::kMaskRing);
      }
      write(number,
            {.w = static_cast<std::int32_t>(at.x),
             .h = KeyFragment::height(at.y),
             .t = KeyFragment::frame(at.y),
             .place = static_cast<std::uint32_t>(KeyFragment::map(at.y)) | source.plane << 4,
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
    publish(number, order.word);
  }

  /// Writes the last word of an order, whose lap tells that the rest is there.
  __device__ void publish(std::uint32_t number, std::uint32_t word) const {
    const std::uint32_t at = number % Config::kOrders;
    ptx::store_release(address_ + Config::kOrderRing + at * sizeof(Order) + offsetof(Order, word),
                       word | Command::lap(number, Config::kOrders));
  }

  /// The valid slots of a load that is partly so, before its order.
  __device__ void write_mask(std::uint32_t load, std::uint32_t low, std::uint32_t high) {
    masks_[load % Config::kMaskRing] = std::uint64_t{high} << 32 | low;
  }

  __device__ void wait_for_room(std::uint32_t count) const {
    const std::uint32_t needed = written_ + count - Config::kOrders;
    for (int loader = 0; loader < 2; ++loader) {
      const std::uint32_t done = address_ + Config::kDone + 4 * loader;
      while (static_cast<std::int32_t>(needed - ptx::load_acquire(done)) > 0) __nanosleep(100);
    }
    __syncwarp();
  }

  static constexpr int kUnits = kFragment / EdgeBox::kUnit;  // of a slot
  static constexpr int kLists = Config::kConsumers + 1;
  static constexpr std::uint32_t kAll = (1U << Config::kConsumers) - 1;
  static constexpr int kFiller = Side::kMaxSegments;  // map of the smallest edge box
  static constexpr int kSlotsAtOnce = 4;

  const Parameters& p_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  Order* orders_;
  std::uint64_t* masks_;
  Piece* held_;                // [list]: up to three of a unit, then one of two
  std::uint32_t waiting_ = 0;  // units of each a list has, four bits a size
  std::uint32_t address_;
  Turns<Config> turns_;
  Plan<Config> plan_;
  std::uint32_t loads_ = 0;    // fragments so far
  std::uint32_t written_ = 0;  // orders so far
};

}  // namespace vidsparse::cuda::sm90
