#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/sm90/attend_parameters.hpp"

namespace vidsparse::cuda::sm90 {

/// Keeps the blocks of a launch at the same place of the key tiles, where a head's K and V do not
/// fit L2: what one block has just read, the others then find there. Items walk ascending key
/// fragments; each block counts itself in at every step and waits, for a bounded time, until all
/// have passed an earlier step. A block that ever waited in vain runs freely from then on, so a
/// machine shared with others loses one wait only. Called by one thread of a block.
template <class T>
class Pace {
 public:
  __device__ explicit Pace(const AttendParameters<T>& parameters) : p_(parameters) {}

  /// About to look at key fragments from `fragment` on, in this block's item number `wave`.
  __device__ void step(int wave, int fragment) {
    if (!waits_ || p_.arrivals == nullptr) return;
    if (fragment % p_.pace_fragments != 0) return;
    const int at = wave * p_.pace_steps + fragment / p_.pace_fragments;
    atomicAdd(p_.arrivals + at, 1U);
    const int earlier = at - 1 - p_.pace_slack;
    if (earlier < 0) return;
    // Blocks with an item in that wave.
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
  const AttendParameters<T>& p_;
  bool waits_ = true;
};

}  // namespace vidsparse::cuda::sm90
