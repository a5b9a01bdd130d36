#pragma once

#include <cstdint>

#include "cuda/sm90/attend_parameters.hpp"

namespace vidsparse::cuda::sm90 {

/// Where an item lies.
struct Item {
  int batch;
  int head;
  int first_fragment;  ///< of its three query fragments

  template <class T>
  __device__ static Item of(int index, const AttendParameters<T>& p, int consumers) {
    const int row = index / p.items_per_head;
    const int batch = row / p.heads;
    return {batch, row - batch * p.heads, (index - row * p.items_per_head) * consumers};
  }
};

/// In which order an item's key fragments are loaded. Each is loaded once for all consumers whose
/// bitmap row names it. In plain ascending order, a run of fragments that one consumer alone wants
/// would fill the ring while the others starve; so a fragment's turn is its *rank*: how many
/// fragments its consumer has been given before (the least among its consumers). Of each rank there
/// is at most one fragment a consumer, which makes a table of ranks x consumers a queue that sorts.
/// On lists that share nothing this is turn and turn about, on equal lists ascending order.
///
/// A warp fills it, 32 candidates at a time, one a lane; ranks that every consumer has reached, or
/// that must make room, are taken out in order.
template <class Config>
class Plan {
 public:
  static constexpr int kConsumers = Config::kConsumers;
  static constexpr int kRanks = Config::kRanks;
  static constexpr int kChunk = 32;

  struct Place {  ///< of KeyFragment
    std::int32_t w;
    std::uint32_t place;
  };

  __device__ explicit Plan(char* shared, int lane)
      : places_(reinterpret_cast<Place*>(shared + Config::kPlan)),
        wanted_(reinterpret_cast<std::uint32_t*>(places_ + kRanks * kConsumers)),
        lane_(lane) {
    for (int i = lane; i < kRanks * kConsumers; i += 32) wanted_[i] = 0;
    __syncwarp();
  }

  /// A new item; `present`: bit c tells whether consumer c has a query fragment.
  __device__ void restart(std::uint32_t present) {
    taken_ = 0;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) given_[c] = present >> c & 1 ? 0 : kAbsent;
  }

  /// This lane's candidate; `users`: bit c for consumer c, none: not wanted. `command` is what its
  /// consumers will be told.
  __device__ void add(std::uint32_t users, Place place, std::uint32_t command) {
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
    if (users != 0) {
      const int at = rank % kRanks * kConsumers + owner;
      places_[at] = place;
      wanted_[at] = command | users << kUsersShift;
    }
    __syncwarp();
  }

  /// Calls visit(place, command, users) on lane 0 for what is ripe, in order; `last`: all of it.
  template <class Visit>
  __device__ void take(bool last, Visit&& visit) {
    int least = kAbsent;
    int most = 0;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      least = min(least, given_[c]);
      if (given_[c] != kAbsent) most = max(most, given_[c]);
    }
    const int until =
        last ? most : max(taken_, max(least == kAbsent ? 0 : least, most + kChunk - kRanks));
    for (int first = taken_ * kConsumers; first < until * kConsumers; first += 32) {
      const int own = first + lane_;
      std::uint32_t* wanted = wanted_ + own % (kRanks * kConsumers);
      const bool ripe = own < until * kConsumers && *wanted != 0;
      std::uint32_t bits = __ballot_sync(~0U, ripe);
      if (lane_ == 0) {
        for (; bits != 0; bits &= bits - 1) {
          const int at = (first + __ffs(bits) - 1) % (kRanks * kConsumers);
          const std::uint32_t word = wanted_[at];
          visit(places_[at], word & ~(7U << kUsersShift), word >> kUsersShift & 7);
        }
      }
      __syncwarp();
      if (ripe) *wanted = 0;
      __syncwarp();
    }
    taken_ = until;
    // One that lags far behind gives up the ranks it has missed.
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) given_[c] = max(given_[c], taken_);
  }

 private:
  static constexpr int kAbsent = 1 << 30;
  static constexpr int kUsersShift = 18;  // where a command says its slots

  Place* places_;
  std::uint32_t* wanted_;
  int lane_;
  int taken_ = 0;               // ranks below are loaded
  int given_[kConsumers] = {};  // ranks below have their fragment
};

}  // namespace vidsparse::cuda::sm90
