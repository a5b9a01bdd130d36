#pragma once

#include <cstdint>

namespace vidsparse::cuda::sm90 {

/// The attend kernel's threads, registers and shared memory on one page.
///
/// A block has three consumer warpgroups, each with one query fragment (64 rows), and a producer
/// warpgroup of which three warps work. The planner walks the union of the three query fragments'
/// bitmap rows and decides in which order its key fragments are loaded, each once. One thread loads
/// K, another V, into rings of slots, and do nothing else: they are on every load's critical path.
///
///   plan                    the planner's own, see attend_plan.cuh
///   orders, done[loader]    planner -> loaders, and how many each is done with
///   full_k, full_v[slot]    loaders -> consumers: 1 arrival + the copy's bytes
///   empty_k, empty_v[slot]  consumers -> loaders: 4 warps x 3; a loader arrives for those that do
///                           not use the fragment, so that they delay nobody
///   queue[consumer]         V's loader -> consumers: which slots to use, in order
///   credit[item parity]     consumers -> planner: 4 warps x 3, once an item (three query
///                           fragments); keeps it within two items, so that queues never overflow
///   masks[load]             planner -> consumers: the valid slots of what is partly so
///   turns[item parity]      planner -> consumers: which item is next
///   held[list]              the planner's own: edge boxes that wait for others to fill a slot with
///
/// `Edges`: several edge boxes may share a slot; without, planner and loaders are leaner.
template <int HeadDim, bool Edges>
struct AttendConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kConsumers = 3;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kWarps = kConsumers * 4;  ///< that consume

  // 65 536 registers = 128 x (3 x 152 + 56).
  static constexpr int kConsumerRegisters = 152;
  static constexpr int kProducerRegisters = 56;

  static constexpr int kFragmentBytes = 64 * HeadDim * 2;
  // A V slot is in use for longer than its K slot: until its weights are there and multiplied.
  static constexpr int kKeySlots = 5 * 128 / HeadDim;
  static constexpr int kValueSlots = 6 * 128 / HeadDim;
  static constexpr int kQueue = 16;   ///< commands of a consumer: value slots + 2 items' ends fit
  static constexpr int kRanks = 64;   ///< of the plan
  static constexpr int kOrders = 32;  ///< from planner to loaders
  static constexpr std::uint32_t kSlotOrders = 2;  ///< of a slot with edge boxes
  static constexpr int kPieceBytes = 16;           ///< of an edge box that waits, four a list
  static constexpr bool kEdges = Edges;
  static constexpr int kMaskRing = 64;  ///< loads planned and not yet attended
  static constexpr bool kTellsMasks = true;

  // Bytes from the start of shared memory, which is 1024-byte aligned.
  static constexpr int kQuery = 0;
  static constexpr int kKeys = kQuery + kConsumers * kFragmentBytes;
  static constexpr int kValues = kKeys + kKeySlots * kFragmentBytes;
  static constexpr int kFullK = kValues + kValueSlots * kFragmentBytes;
  static constexpr int kEmptyK = kFullK + 8 * kKeySlots;
  static constexpr int kFullV = kEmptyK + 8 * kKeySlots;
  static constexpr int kEmptyV = kFullV + 8 * kValueSlots;
  static constexpr int kCredit = kEmptyV + 8 * kValueSlots;
  static constexpr int kQueues = kCredit + 8 * 2;
  static constexpr int kOrderRing = (kQueues + 4 * kConsumers * kQueue + 15) / 16 * 16;
  static constexpr int kPlan = kOrderRing + 32 * kOrders;
  static constexpr int kHeld = kPlan + 4 * kConsumers * kRanks;
  static constexpr int kDone = kHeld + 4 * kPieceBytes * (kConsumers + 1);
  static constexpr int kRowSlots = 0;  ///< nothing comes with a slot of K
  static constexpr int kRowBytes = 0;
  static constexpr int kMasks = kDone + 4 * 2;
  static constexpr int kTurns = kMasks + 8 * kMaskRing;
  static constexpr int kSharedBytes = kTurns + 4 * 2;
  static_assert(kSharedBytes <= 227 * 1024);
  static_assert(kQueue >= kValueSlots + 2);
  static_assert(kMaskRing >= kOrders + kValueSlots);
};

/// What a consumer is told: to attend a key fragment, or that its item is done.
///   31..30 lap of the queue   29 end   28 some slots are not valid
///   27..24 key slot   23 its parity   22..19 value slot   18 its parity
///   17..0 index in the fragment table; where consumers are told masks, in their ring
struct Command {
  static constexpr std::uint32_t kEnd = 1U << 29;
  static constexpr std::uint32_t kPartial = 1U << 28;
  static constexpr std::int32_t kMaxFragments = 1 << 18;

  static constexpr bool is_end(std::uint32_t command) { return (command & kEnd) != 0; }
  static constexpr std::uint32_t key_slot(std::uint32_t command) { return command >> 24 & 15; }
  static constexpr std::uint32_t key_parity(std::uint32_t command) { return command >> 23 & 1; }
  static constexpr std::uint32_t value_slot(std::uint32_t command) { return command >> 19 & 15; }
  static constexpr std::uint32_t value_parity(std::uint32_t command) { return command >> 18 & 1; }
  static constexpr std::uint32_t fragment(std::uint32_t command) { return command & 0x3FFFF; }
  static constexpr std::uint32_t with_fragment(std::uint32_t command, std::uint32_t fragment) {
    return (command & ~std::uint32_t{0x3FFFF}) | fragment;
  }
  static constexpr std::uint32_t pack(std::uint32_t key_slot, std::uint32_t key_parity,
                                      std::uint32_t value_slot, std::uint32_t value_parity) {
    return key_slot << 24 | key_parity << 23 | value_slot << 19 | value_parity << 18;
  }
  /// Of entry number `count` in a ring of `length`: 1 to 3, never what memory starts as, so no
  /// entry is 0.
  static constexpr std::uint32_t lap(std::uint32_t count, std::uint32_t length) {
    return (count / length % 3 + 1) << 30;
  }
};

}  // namespace vidsparse::cuda::sm90
