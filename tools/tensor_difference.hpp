#pragma once

#include <string>

#include "vidsparse/tensor.hpp"

namespace vidsparse::tools {

/// How far one tensor lies from another, over the elements that are finite in both.
struct TensorDifference {
  double relative_l2 = 0;  ///< |a - b| / |b|
  double maximum = 0;
  std::string where;  ///< "[b, token, head, d]" of the maximum
};

/// `a` and `b`: dense, of one shape and floating dtype.
TensorDifference compare_tensors(const TensorView& a, const TensorView& b);

}  // namespace vidsparse::tools
