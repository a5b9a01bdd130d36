#pragma once

#include <cstdint>

namespace vidsparse::cuda::sm90 {

/// Keeps the blocks of a launch at the same place of the key tiles, where a head's K and V do not
/// fit L2: what one block has just read, the others then find there. Items walk ascending key
/// fragments, as many items as there are blocks make a wave; each block counts its item in at every
/// step and waits, for a bounded time, until all of the wave have passed an earlier step. A block
/// that ever waited in vain runs freely from then on, so a machine shared with others loses one
/// wait only. Called by one thread of a block.
template <class Parameters>
class Pace {
 public:
  __device__ explicit Pace(const Parameters& parameters) : p_(parameters) {}

  /// This block is about to be in step number `steps` - 1 of all waves; at the `end` of an item all
  /// of its steps are done, and the next may be of any wave.
  __device__ void step(int steps, bool end) {
    if (p_.arrivals == nullptr) return;
    if (fresh_) done_ = (steps - 1) / p_.pace_steps * p_.pace_steps;
    fresh_ = end;
    if (steps <= done_) return;
    for (; done_ < steps; ++done_) {
      if (done_ < limit()) atomicAdd(p_.arrivals + done_, 1U);
    }
    const int earlier = steps - 2 - p_.pace_slack;
    if (earlier < 0 || !waits_) return;
    const int blocks = static_cast<int>(gridDim.x);
    const auto all =
        static_cast<unsigned>(min(blocks, p_.items - earlier / p_.pace_steps * blocks));
    const volatile unsigned* count = p_.arrivals + earlier;
    const long long start = clock64();
    while (*count < all) {
      if (clock64() - start > kPatience) {
        waits_ = false;
        return;
      }
    }
  }

 private:
  static constexpr long long kPatience = 200'000;  // cycles, about 0.1 ms

  /// Counters there are: steps of all waves.
  __device__ int limit() const {
    const int blocks = static_cast<int>(gridDim.x);
    return (p_.items + blocks - 1) / blocks * p_.pace_steps;
  }

  const Parameters& p_;
  int done_ = 0;
  bool fresh_ = true;  // no step of the item yet
  bool waits_ = true;
};

}  // namespace vidsparse::cuda::sm90
