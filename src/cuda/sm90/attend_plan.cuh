#pragma once

#include <cstdint>

#include "cuda/common/edge_box.cuh"
#include "cuda/sm90/attend_config.hpp"

namespace vidsparse::cuda::sm90 {

/// What the loaders are told: everything worked out. Where several edge boxes fill a slot, the
/// first four words of two or three orders in a row are those of the boxes, one for each unit of
/// the slot: the coordinates w; h, t and the map as the fragment table packs them, or kNoBox in the
/// second unit of a box; and where rows come with a slot (Config::kRowBytes), the first of the
/// box's in steps of kRowStep bytes.
struct alignas(16) Order {
  std::int32_t w, h, t;  ///< coordinates of the fragment
  /// 3..0 which map   31..4 batch entry and head, where rows are loaded
  std::uint32_t place;
  std::int32_t column_k;  ///< coordinate J in K
  std::int32_t column_v;  ///< and in V
  std::uint32_t command;  ///< for the consumers; kEnd: the item is done
  /// 2..0 users (bit c: consumer c)   3 stop   4 edge boxes   29..5 steps of the pace, or 0
  /// 31..30 lap
  std::uint32_t word;

  static constexpr std::int32_t kRowStep = EdgeBox::kUnit * 4;
  static constexpr std::uint32_t kNoBox = ~0U;
  static constexpr std::uint32_t map(std::uint32_t place) { return place & 15; }
  static constexpr std::uint32_t plane(std::uint32_t place) { return place >> 4; }
  static constexpr std::uint32_t kStop = 8;
  static constexpr std::uint32_t kEdges = 16;
  static constexpr std::int64_t kMaxPlanes = 1 << 28;     ///< batch entries x heads
  static constexpr std::int64_t kMaxPaceSteps = 1 << 25;  ///< of a block's items
  static constexpr std::uint32_t users(std::uint32_t word) { return word & 7; }
  static constexpr std::uint32_t pace(std::int32_t steps) {
    return static_cast<std::uint32_t>(steps) << 5;
  }
  static constexpr std::int32_t pace_steps(std::uint32_t word) {
    return static_cast<std::int32_t>(word >> 5 & 0x1FFFFFF);
  }
};

/// In which order an item's key fragments are loaded. Each is loaded once for all consumers whose
/// bitmap row names it. In plain ascending order, a run of fragments that one consumer alone wants
/// would fill the ring while the others starve; so a fragment's turn is its *rank*: how many
/// fragments its consumer has been given before (the least among its consumers). Of each rank there
/// is at most one fragment a consumer, which makes a table of ranks x consumers a queue that sorts.
/// On lists that share nothing this is turn and turn about. Lists that share much are better loaded
/// in ascending order, which the planner does: what waits in a slot for a consumer whose turn has
/// not come is in the others' way.
///
/// A warp fills it, 32 candidates at a time, one a lane; ranks that every consumer has reached, or
/// that must make room, are taken out in order.
template <class Config>
class Plan {
 public:
  static constexpr int kConsumers = Config::kConsumers;
  static constexpr int kRanks = Config::kRanks;
  static constexpr int kChunk = 32;

  __device__ Plan(char* shared, int lane)
      : wanted_(reinterpret_cast<std::uint32_t*>(shared + Config::kPlan)), lane_(lane) {}

  /// A new item whose first `rows` consumers have a query fragment.
  __device__ void restart(int rows) {
    taken_ = 0;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) given_[c] = c < rows ? 0 : kAbsent;
  }

  /// This lane's candidate; `users`: bit c for consumer c, none: not wanted. `command` names it.
  __device__ void add(std::uint32_t users, std::uint32_t command) {
    int rank = kAbsent;
    int owner = 0;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      const bool uses = users >> c & 1;
      const std::uint32_t all = __ballot_sync(~0U, uses);
      const int own = given_[c] + __popc(all & ((1U << lane_) - 1));
      if (uses && own < rank) {
        rank = own;
        owner = c;
      }
      if (given_[c] != kAbsent) given_[c] += __popc(all);
    }
    if (users != 0) wanted_[rank % kRanks * kConsumers + owner] = command | users << kUsersShift;
    __syncwarp();
  }

  /// Calls emit(wanted, command, users) in all lanes for up to 32 fragments at a time that are
  /// ripe, in order of the lanes that want one. `last`: all there are.
  template <class Emit>
  __device__ void take(bool last, Emit&& emit) {
    int least = kAbsent;
    int most = 0;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      least = min(least, given_[c]);
      if (given_[c] != kAbsent) most = max(most, given_[c]);
    }
    const int until = last ? most : max(least == kAbsent ? 0 : least, most + kChunk - kRanks);
    for (int first = taken_ * kConsumers; first < until * kConsumers; first += 32) {
      const int own = first + lane_;
      std::uint32_t* wanted = wanted_ + own % (kRanks * kConsumers);
      const std::uint32_t word = own < until * kConsumers ? *wanted : 0;
      if (word != 0) *wanted = 0;
      emit(word != 0, word & ~(7U << kUsersShift), word >> kUsersShift & 7);
    }
    __syncwarp();
    taken_ = max(taken_, until);
    // One that lags far behind gives up the ranks it has missed.
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) given_[c] = max(given_[c], taken_);
  }

 private:
  static constexpr int kAbsent = 1 << 30;
  static constexpr int kUsersShift = 18;  // where a command will say its slots

  std::uint32_t* wanted_;
  int lane_;
  int taken_ = 0;               // ranks below are out
  int given_[kConsumers] = {};  // ranks below have their fragment
};

}  // namespace vidsparse::cuda::sm90
