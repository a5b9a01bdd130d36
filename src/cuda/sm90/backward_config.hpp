#pragma once

#include <cstdint>

namespace vidsparse::cuda::sm90 {

/// The backward passes' threads, registers and shared memory on one page; what is alike is
/// explained in attend_config.hpp.
///
/// A consumer owns one fragment of 64 rows, two tensors of it: K and V in the pass by key, Q and dO
/// in the pass by query. The other side's two tensors pass through the rings.
///
///                     by key                      by query
///   owned             K, V                        Q, dO
///   ring "V"          Q: scores, then dK          K: scores, then dQ
///   ring "K"          dO: dP, then dV             V: dP
///   rows of ring "K"  lse and delta of 64 queries none: a consumer has those of its own rows
///
/// `Edges`: the other side has edge boxes.
template <int HeadDim, bool ByKey, bool Edges>
struct BackwardConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kByKey = ByKey;
  static constexpr int kConsumers = ByKey ? 2 : 3;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kWarps = kConsumers * 4;

  // A launch of 384 threads has 168 registers each, 128 x (2 x 224 + 56) of them in all; one of 512
  // has 128, which makes 128 x (3 x 160 + 32).
  static constexpr int kConsumerRegisters = ByKey ? 224 : 160;
  static constexpr int kProducerRegisters = ByKey ? 56 : 32;

  static constexpr int kFragmentBytes = 64 * HeadDim * 2;
  static constexpr int kRowBytes = ByKey ? 2 * 64 * 4 : 0;
  static constexpr int kKeySlots = 4 * 128 / HeadDim;
  static constexpr int kValueSlots = (ByKey ? 5 : 4) * 128 / HeadDim;
  static constexpr int kQueue = 16;
  static constexpr int kRanks = 64;
  static constexpr int kOrders = 32;
  static constexpr std::uint32_t kSlotOrders = ByKey ? 3 : 2;
  static constexpr int kPieceBytes = 16;
  static constexpr bool kEdges = Edges;
  static constexpr int kMaskRing = 64;
  static constexpr bool kTellsMasks = !ByKey;  ///< by key they follow from rows: the planner's own

  // Bytes from the start of shared memory, which is 1024-byte aligned.
  static constexpr int kOwn = 0;  ///< [consumer][2]
  static constexpr int kKeys = kOwn + 2 * kConsumers * kFragmentBytes;
  static constexpr int kValues = kKeys + kKeySlots * kFragmentBytes;
  static constexpr int kRowSlots = kValues + kValueSlots * kFragmentBytes;
  static constexpr int kFullK = kRowSlots + kKeySlots * kRowBytes;
  static constexpr int kEmptyK = kFullK + 8 * kKeySlots;
  static constexpr int kFullV = kEmptyK + 8 * kKeySlots;
  static constexpr int kEmptyV = kFullV + 8 * kValueSlots;
  static constexpr int kCredit = kEmptyV + 8 * kValueSlots;
  static constexpr int kQueues = kCredit + 8 * 2;
  static constexpr int kOrderRing = (kQueues + 4 * kConsumers * kQueue + 15) / 16 * 16;
  static constexpr int kPlan = kOrderRing + 32 * kOrders;
  static constexpr int kHeld = kPlan + 4 * kConsumers * kRanks;
  static constexpr int kDone = kHeld + 4 * kPieceBytes * (kConsumers + 1);
  static constexpr int kMasks = kDone + 4 * 2;
  static constexpr int kTurns = kMasks + 8 * kMaskRing;
  static constexpr int kSharedBytes = kTurns + 4 * 2;
  static_assert(kSharedBytes <= 227 * 1024);
  static_assert(kMaskRing >= kOrders + kValueSlots);
  static_assert(kQueue >= kValueSlots + 4);  // two items with two ends each
};

}  // namespace vidsparse::cuda::sm90
