#pragma once

#include <cmath>

#include "core/half.hpp"
#include "vidsparse/dtype.hpp"

namespace vidsparse::reference {

// The reference is a template over its arithmetic: the type sums are kept in, and what becomes of
// the result of an op (a product, a softmax, a combination). docs/numerics.md lists the ops.

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::f64 : DType::f32;
}

/// Nothing is rounded but what T itself rounds.
template <class T>
struct ExactArithmetic {
  using Scalar = T;
  constexpr T operator()(T value) const { return value; }
  constexpr T multiply_add(T a, T b, T sum) const { return a * b + sum; }
};

/// The op as a careful beginner writes it in the input dtype: fp32 sums, every result rounded. Its
/// error is the yardstick the kernels are judged by.
struct PlainArithmetic {
  using Scalar = float;
  DType dtype = DType::f32;
  bool fused = false;  ///< sums of products round once a term, not twice

  constexpr float operator()(float value) const {
    if (dtype == DType::bf16) return core::from_bf16(core::to_bf16(value));
    if (dtype == DType::f16) return core::from_f16(core::to_f16(value));
    return value;
  }
  float multiply_add(float a, float b, float sum) const {
    return fused ? std::fma(a, b, sum) : a * b + sum;
  }
};

}  // namespace vidsparse::reference
