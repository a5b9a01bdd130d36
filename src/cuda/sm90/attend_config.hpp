#pragma once

#include <cstdint>

namespace vidsparse::cuda::sm90 {

/// The attend kernel's threads, registers and shared memory on one page.
///
/// A block has three consumer warpgroups, each with one query fragment (64 rows) in registers, and a
/// producer warpgroup of which one warp works. The producer walks the union of the three query
/// fragments' bitmap rows in ascending order and loads every key fragment of it once, into a ring of
/// stages; a stage holds a K and a V fragment.
///
///   full_k, full_v[stage]  producer -> consumers: 1 arrival + the copy's bytes
///   empty[stage]           consumers -> producer: 4 warps x 3; the producer arrives for those that
///                          do not use the fragment, so that they delay nobody
///   queue[consumer]        which stages to use, in order; 32-bit commands
///   credit[item parity]    consumers -> producer: 4 warps x 3, once an item (three query fragments);
///                          keeps the producer within two items, so that queues never overflow
template <int HeadDim, bool QueryInRegisters>
struct AttendConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kQueryInRegisters = QueryInRegisters;
  static constexpr int kConsumers = 3;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kWarps = kConsumers * 4;  ///< that consume

  // 65 536 registers = 128 x (3 x 152 + 56).
  static constexpr int kConsumerRegisters = 160;
  static constexpr int kProducerRegisters = 32;

  static constexpr int kFragmentBytes = 64 * HeadDim * 2;  ///< of K or of V
  static constexpr int kStageBytes = 2 * kFragmentBytes;
  static constexpr int kStages = (QueryInRegisters ? 7 : 5) * 128 / HeadDim;
  static constexpr int kQueue = 32;  ///< commands; stages + 2 items' ends fit
  static constexpr int kPlan = 32;   ///< fragments the producer looks at a time, one a lane

  // Bytes from the 1024-byte aligned start of shared memory.
  static constexpr int kQuery = kStages * kStageBytes;
  static constexpr int kFullK = kQuery + (QueryInRegisters ? 0 : kConsumers * kFragmentBytes);
  static constexpr int kFullV = kFullK + 8 * kStages;
  static constexpr int kEmpty = kFullV + 8 * kStages;
  static constexpr int kCredit = kEmpty + 8 * kStages;
  static constexpr int kQueues = (kCredit + 8 * 2 + 15) / 16 * 16;
  static constexpr int kPlanned = kQueues + 4 * kConsumers * kQueue;
  static constexpr int kSharedBytes = kPlanned + 16 * kPlan;
  static constexpr int kDynamicBytes = kSharedBytes + 1024;  ///< room to align
  static_assert(kDynamicBytes <= 227 * 1024);
  static_assert(kQueue >= kStages + 2);
};

/// What a consumer is told of a stage, or that its item is done.
///   31..30 lap of the queue   29 end   28 some slots are not valid   27 parity   26..23 stage
///   22..0 index in the fragment table
struct Command {
  static constexpr std::uint32_t kEnd = 1U << 29;
  static constexpr std::uint32_t kPartial = 1U << 28;
  static constexpr std::int32_t kMaxFragments = 1 << 23;

  static constexpr std::uint32_t pack(std::uint32_t stage, std::uint32_t parity) {
    return stage << 23 | parity << 27;
  }
  static constexpr std::uint32_t stage(std::uint32_t command) { return command >> 23 & 15; }
  static constexpr std::uint32_t parity(std::uint32_t command) { return command >> 27 & 1; }
  static constexpr std::uint32_t fragment(std::uint32_t command) { return command & 0x7FFFFF; }
  /// Of the command number `count` in a queue of `length`: 1 to 3, so never what memory starts as.
  static constexpr std::uint32_t lap(std::uint32_t count, std::uint32_t length) {
    return (count / length % 3 + 1) << 30;
  }
};

}  // namespace vidsparse::cuda::sm90
