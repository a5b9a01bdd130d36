#pragma once

#include <cstdint>

#include "cuda/common/attend_problem.cuh"
#include "cuda/sm90/tensor_map.hpp"

namespace vidsparse::cuda::sm90 {

/// The one parameter of the attend kernel.
template <class T>
struct AttendParameters : AttendProblem<T> {
  TensorMaps k;
  TensorMaps v;
  std::int64_t table_head = 0;    ///< entries from one head to the next, 0: shared
  bool clear_pads = false;        ///< slots that are not valid may hold anything, not zeros
  std::int32_t filler_units = 1;  ///< of the first, smallest edge box: fills slots with zeros
  std::int32_t members = 1;       ///< heads an item walks one after the other

  // See item_plan.hpp.
  TextFirst turns;
  std::int32_t items_of_text = 0;
  std::int32_t items_per_head = 0;
  std::int32_t text_items = 0;
  std::int32_t items = 0;
  std::uint32_t* next = nullptr;  ///< how many items blocks have asked for

  // Pace, see attend_pace.cuh.
  std::uint32_t* arrivals = nullptr;  ///< [waves, steps of an item]; null: blocks run freely
  std::int32_t pace_fragments = 0;    ///< key fragments of a step
  std::int32_t pace_steps = 0;        ///< of an item
  std::int32_t pace_slack = 0;

  /// The query tile whose fragment is number `turn` of a head.
  __device__ int own_tile(int, int, int turn) const {
    return this->fragments_per_tile.quotient(turns.fragment(turn));
  }
};

}  // namespace vidsparse::cuda::sm90
