#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace vidsparse::reference {

// The few operations attention is made of. Sums run in order, each in T; every result passes
// through the arithmetic once.

/// y[j] = round(scale * sum_d x[d] * columns[d][j]): x times the rows of a matrix that is stored
/// transposed, [depth][n], so that the loop over j is the inner one.
template <class Arithmetic, class T = typename Arithmetic::Scalar>
void times_columns(const Arithmetic& round, const T* x, const T* columns, std::int64_t depth,
                   std::int64_t n, T scale, T* y) {
  std::fill_n(y, n, T{0});
  for (std::int64_t d = 0; d < depth; ++d) {
    for (std::int64_t j = 0; j < n; ++j) y[j] = round.multiply_add(x[d], columns[d * n + j], y[j]);
  }
  for (std::int64_t j = 0; j < n; ++j) y[j] = round(scale * y[j]);
}

/// y[d] = round(scale * sum_j weights[j] * rows[j][d]), rows [n][depth].
template <class Arithmetic, class T = typename Arithmetic::Scalar>
void weighted_sum(const Arithmetic& round, const T* weights, const T* rows, std::int64_t n,
                  std::int64_t depth, T scale, T* y) {
  std::fill_n(y, depth, T{0});
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t d = 0; d < depth; ++d) {
      y[d] = round.multiply_add(weights[j], rows[j * depth + d], y[d]);
    }
  }
  for (std::int64_t d = 0; d < depth; ++d) y[d] = round(scale * y[d]);
}

/// y[d] += factor * x[d].
template <class T>
void add_scaled(T factor, const T* x, std::int64_t n, T* y) {
  for (std::int64_t d = 0; d < n; ++d) y[d] += factor * x[d];
}

/// columns[d][j] = rows[j][d].
template <class T>
void transpose_rows(const T* rows, std::int64_t n, std::int64_t depth, T* columns) {
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t d = 0; d < depth; ++d) columns[d * n + j] = rows[j * depth + d];
  }
}

template <class T>
struct SoftmaxSums {
  T max;  ///< -inf when there is no weight to give
  T sum;  ///< sum of exp(x - max); 0 when there is no weight to give

  T log_sum_exp() const { return max + std::log(sum); }
};

/// Scores to weights in place. Without a score above -inf all weights are 0; one NaN makes all NaN.
template <class Arithmetic, class T = typename Arithmetic::Scalar>
SoftmaxSums<T> softmax(const Arithmetic& round, T* scores, std::int64_t n) {
  T max = -std::numeric_limits<T>::infinity();
  for (std::int64_t j = 0; j < n; ++j) {
    if (!(scores[j] <= max)) max = std::isnan(max) ? max : scores[j];
  }
  if (max == -std::numeric_limits<T>::infinity()) {
    std::fill_n(scores, n, T{0});
    return {max, T{0}};
  }
  T sum = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    scores[j] = std::exp(scores[j] - max);
    sum += scores[j];
  }
  for (std::int64_t j = 0; j < n; ++j) scores[j] = round(scores[j] / sum);
  return {max, sum};
}

/// Sum of a[d] * b[d], from the last to the first: where this sum cancels against one of
/// times_columns, as delta does, rounding errors must not cancel too by running in the same order.
template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  T sum = 0;
  for (std::int64_t d = n - 1; d >= 0; --d) sum += a[d] * b[d];
  return sum;
}

}  // namespace vidsparse::reference
