#pragma once

#include <cstdint>

#include "cuda/common/attend_problem.cuh"

namespace vidsparse::cuda::sm80 {

/// K or V as copies take it: one head's tokens of one batch entry after the other.
struct KeyRows {
  const char* data = nullptr;
  std::int64_t batch_bytes = 0;
  std::int64_t head_bytes = 0;
  std::int32_t token_bytes = 0;
};

/// The one parameter of the attend kernel. Blocks go head by head, so that those that run together
/// read the same K and V.
template <class T>
struct AttendParameters : AttendProblem<T> {
  Side key;  ///< of the fragment table
  KeyRows k;
  KeyRows v;
};

}  // namespace vidsparse::cuda::sm80
