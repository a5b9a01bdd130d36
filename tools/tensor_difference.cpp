#include "tensor_difference.hpp"

#include <cmath>

#include "reference/rows.hpp"

namespace vidsparse::tools {
namespace {

std::string coordinate(const TensorView& tensor, std::int64_t index) {
  std::string text = "]";
  for (int axis = tensor.rank - 1; axis >= 0; --axis) {
    const std::int64_t side = tensor.shape[static_cast<std::size_t>(axis)];
    text = (axis == 0 ? "[" : ", ") + std::to_string(index % side) + text;
    index /= side;
  }
  return text;
}

}  // namespace

TensorDifference compare_tensors(const TensorView& a, const TensorView& b) {
  TensorDifference difference;
  double squares = 0;
  double norm = 0;
  std::int64_t worst = 0;
  const std::int64_t count = a.elements();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto expected = reference::load<double>(b, i);
    const double distance = std::abs(reference::load<double>(a, i) - expected);
    if (!std::isfinite(distance)) continue;
    squares += distance * distance;
    norm += expected * expected;
    if (distance > difference.maximum) {
      difference.maximum = distance;
      worst = i;
    }
  }
  difference.relative_l2 = norm > 0 ? std::sqrt(squares / norm) : 0;
  difference.where = count > 0 ? coordinate(a, worst) : "[]";
  return difference;
}

}  // namespace vidsparse::tools
