#pragma once

#include <cstdint>

#include "cuda/ptx/shared_word.cuh"

namespace vidsparse::cuda::sm90 {

/// Where an item lies (item_plan.hpp).
struct Item {
  int batch;
  int head;
  int first_turn;  ///< of TextFirst: its first fragment's
  int rows;        ///< consumers that have a fragment

  template <class Parameters>
  __device__ static Item of(int index, const Parameters& p, int consumers) {
    const bool text = index < p.text_items;
    if (!text) index -= p.text_items;
    const int of_head = text ? p.items_of_text : p.items_per_head;
    const int plane = index / of_head;
    const int batch = plane / p.heads;
    const int turn = (text ? 0 : p.turns.text()) + (index - plane * of_head) * consumers;
    const int end = text ? p.turns.text() : p.turns.fragments();
    return {batch, plane - batch * p.heads, turn, min(consumers, end - turn)};
  }
};

/// Which item a block takes: its first is its own, each other the next of all, which the planner
/// asks for and tells the consumers by a word of shared memory for every second item.
template <class Config>
class Turns {
 public:
  __device__ explicit Turns(std::uint32_t address) : words_(address + Config::kTurns) {}

  /// By one thread, once nobody needs the word of the item before the last any more.
  __device__ void tell(int wave, int index) const {
    ptx::store_release(words_ + 4 * (wave & 1), static_cast<std::uint32_t>(index + 1) | lap(wave));
  }
  /// By a whole warp. There are fewer than 2^31 items and blocks, see can_attend.
  __device__ int wait(int wave) const {
    if (wave == 0) return static_cast<int>(blockIdx.x);
    std::uint32_t word;
    while ((word = ptx::load_acquire(words_ + 4 * (wave & 1))) == 0 || (word & kLap) != lap(wave)) {
      __nanosleep(20);
    }
    // The compiler is to know that a warp takes one way.
    return __shfl_sync(~0U, static_cast<int>(word & ~kLap) - 1, 0);
  }

 private:
  static constexpr std::uint32_t kLap = 1U << 31;
  __device__ static std::uint32_t lap(int wave) { return wave & 2 ? kLap : 0; }

  std::uint32_t words_;
};

}  // namespace vidsparse::cuda::sm90
