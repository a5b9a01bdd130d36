#include "reference/judge.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "reference/rows.hpp"

namespace vidsparse::reference {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

/// Significant bits and the smallest subnormal's exponent.
struct Precision {
  int bits;
  int lowest;
};

Precision precision_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return {53, -1074};
    case DType::f16:
      return {11, -24};
    case DType::bf16:
      return {8, -133};
    default:
      return {24, -149};
  }
}

/// Distance from `value` to the next number of the dtype.
double ulp(double value, DType dtype) {
  const Precision precision = precision_of(dtype);
  int exponent = precision.lowest;
  if (value != 0) std::frexp(value, &exponent);
  return std::ldexp(1.0, std::max(exponent - precision.bits, precision.lowest));
}

/// What the exact value is in the dtype: only there can it be told whether it is infinite.
double rounded(double value, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return value;
    case DType::f16:
      return core::from_f16(core::to_f16(value));
    case DType::bf16:
      return core::from_bf16(core::to_bf16(value));
    default:
      return static_cast<float>(value);
  }
}

bool same_kind(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return true;
}

/// Walks the elements of a tensor in row-major order.
class Walk {
 public:
  explicit Walk(const TensorView& shape) : shape_(shape), count_(shape.elements()) {}

  std::int64_t count() const { return count_; }

  double at(const TensorView& tensor, std::int64_t index) const {
    std::int64_t offset = 0;
    for (int i = tensor.rank - 1; i >= 0; --i) {
      const auto axis = static_cast<std::size_t>(i);
      offset += index % shape_.shape[axis] * (i == tensor.rank - 1 ? 1 : tensor.strides[axis]);
      index /= shape_.shape[axis];
    }
    return load<double>(tensor, offset);
  }

  std::string name(std::int64_t index) const {
    std::string text;
    for (int i = shape_.rank - 1; i >= 0; --i) {
      const std::int64_t side = shape_.shape[static_cast<std::size_t>(i)];
      text.insert(0, (i == 0 ? "[" : ", ") + std::to_string(index % side));
      index /= side;
    }
    return text + "]";
  }

 private:
  TensorView shape_;
  std::int64_t count_;
};

std::string place(const Walk& walk, std::int64_t index, double expected, double got) {
  return walk.name(index) + ": expected " + number(expected) + ", got " + number(got);
}

/// Fails on the first element that is NaN, +inf or -inf where the exact one is not.
Report judge_kinds(const std::string& name, const Walk& walk, const TensorView& actual,
                   const TensorView& exact) {
  Report report;
  report.what = name + ": NaN and infinities";
  for (std::int64_t i = 0; i < walk.count(); ++i) {
    const double expected = rounded(walk.at(exact, i), actual.dtype);
    const double got = walk.at(actual, i);
    if (same_kind(expected, got)) continue;
    report.worst += 1;
    if (report.ok) report.where = place(walk, i, expected, got);
    report.ok = false;
  }
  return report;
}

/// Maximum and RMS over the finite elements.
struct Errors {
  double largest = 0;
  double rms = 0;
  std::int64_t index = 0;
};

Errors errors_of(const Walk& walk, const TensorView& values, const TensorView& exact) {
  Errors errors;
  double squares = 0;
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < walk.count(); ++i) {
    const double error = std::abs(walk.at(values, i) - walk.at(exact, i));
    if (!std::isfinite(error)) continue;
    squares += error * error;
    ++count;
    if (error > errors.largest) {
      errors.largest = error;
      errors.index = i;
    }
  }
  if (count > 0) errors.rms = std::sqrt(squares / static_cast<double>(count));
  return errors;
}

struct Magnitude {
  double largest = 0;
  double rms = 0;
};

Magnitude magnitude_of(const Walk& walk, const TensorView& exact) {
  Magnitude magnitude;
  double squares = 0;
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < walk.count(); ++i) {
    const double value = std::abs(walk.at(exact, i));
    if (!std::isfinite(value)) continue;
    magnitude.largest = std::max(magnitude.largest, value);
    squares += value * value;
    ++count;
  }
  if (count > 0) magnitude.rms = std::sqrt(squares / static_cast<double>(count));
  return magnitude;
}

}  // namespace

std::string Report::to_string() const {
  return what + (ok ? " ok" : " FAILED") + ": " + number(worst) + " of " + number(bound) +
         (where.empty() ? "" : " at " + where);
}

const Report& decisive(const std::vector<Report>& reports) {
  for (const Report& report : reports) {
    if (!report.ok) return report;
  }
  return reports.back();
}

Report judge_tensor(const std::string& name, const TensorView& actual, const TensorView& exact,
                    const std::vector<TensorView>& plain) {
  const Walk walk(actual);
  Report kinds = judge_kinds(name, walk, actual, exact);
  if (!kinds.ok || walk.count() == 0) return kinds;

  const Errors ours = errors_of(walk, actual, exact);
  Errors yardstick;
  for (const TensorView& answer : plain) {
    const Errors errors = errors_of(walk, answer, exact);
    yardstick.largest = std::max(yardstick.largest, errors.largest);
    yardstick.rms = std::max(yardstick.rms, errors.rms);
  }
  const Magnitude magnitude = magnitude_of(walk, exact);

  Report largest;
  largest.what = name + ": maximum error";
  largest.bound = 2 * yardstick.largest + ulp(magnitude.largest, actual.dtype);
  largest.bound_by_plain = true;
  largest.worst = ours.largest;
  largest.ok = largest.worst <= largest.bound;
  largest.where = place(walk, ours.index, walk.at(exact, ours.index), walk.at(actual, ours.index));

  Report rms;
  rms.what = name + ": RMS error";
  // Where plain arithmetic happens to be exact it sets no measure: half an ulp then does.
  rms.bound = std::max(1.5 * yardstick.rms, ulp(magnitude.rms, actual.dtype) / 2);
  rms.bound_by_plain = true;
  rms.worst = ours.rms;
  rms.ok = rms.worst <= rms.bound;
  rms.where = largest.where;
  return !largest.ok || rms.ok ? largest : rms;
}

Report judge_close(const std::string& name, const TensorView& actual, const TensorView& exact,
                   double tolerance) {
  const Walk walk(actual);
  Report report = judge_kinds(name, walk, actual, exact);
  if (!report.ok || walk.count() == 0) return report;
  report.what = name + ": error relative to its vector";
  report.bound = tolerance;
  const std::int64_t depth = actual.shape[static_cast<std::size_t>(actual.rank) - 1];
  for (std::int64_t first = 0; first < walk.count(); first += depth) {
    double scale = 0;
    for (std::int64_t i = first; i < first + depth; ++i) {
      const double value = std::abs(walk.at(exact, i));
      if (std::isfinite(value)) scale = std::max(scale, value);
    }
    for (std::int64_t i = first; i < first + depth; ++i) {
      const double error = std::abs(walk.at(actual, i) - walk.at(exact, i));
      if (!std::isfinite(error) || error == 0) continue;
      const double relative = scale == 0 ? std::numeric_limits<double>::infinity() : error / scale;
      if (relative <= report.worst) continue;
      report.worst = relative;
      report.where = place(walk, i, walk.at(exact, i), walk.at(actual, i));
    }
  }
  report.ok = report.worst <= report.bound;
  return report;
}

}  // namespace vidsparse::reference
