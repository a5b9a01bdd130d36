#pragma once

#include <cstdint>

#include "cuda/common/attend_problem.cuh"
#include "cuda/sm80/head_rows.hpp"
#include "cuda/sm80/item.cuh"

namespace vidsparse::cuda::sm80 {

/// The one parameter of the attend kernel.
template <class T>
struct AttendParameters : AttendProblem<T> {
  Side key;  ///< of the fragment table
  HeadRows k;
  HeadRows v;
  ItemCounts items;  ///< query fragments
};

}  // namespace vidsparse::cuda::sm80
