#pragma once

#include <cstdint>

#include "cuda/common/attend_problem.cuh"
#include "cuda/sm80/blocks.hpp"
#include "cuda/sm80/head_rows.hpp"

namespace vidsparse::cuda::sm80 {

/// The one parameter of the attend kernel.
template <class T>
struct AttendParameters : AttendProblem<T> {
  Side key;  ///< of the fragment table
  HeadRows k;
  HeadRows v;
  ItemBlocks blocks;
};

}  // namespace vidsparse::cuda::sm80
