#pragma once

#include <limits>

#include "cpu/kernels.hpp"

// Row operations on scores for the `Vec` of the including ISA file. Internal linkage: see
// vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Minimax polynomials of 2^f with p(0) = 1: error 0.02 * 2^-23, on [0, 1) or [-1/2, 1/2],
/// whichever way the ISA splits.
struct Exp2Fraction {
  Vec operator()(Vec f) const {
    constexpr bool kFromZero = Vec::kFractionFromZero;
    constexpr float c1 = kFromZero ? 0.6931470632553101f : 0.6931471824645996f;
    constexpr float c2 = kFromZero ? 0.2402293086051941f : 0.24022647738456726f;
    constexpr float c3 = kFromZero ? 0.055485278367996216f : 0.055503323674201965f;
    constexpr float c4 = kFromZero ? 0.00967545434832573f : 0.00961843691766262f;
    constexpr float c5 = kFromZero ? 0.0012467820197343826f : 0.001339887734502554f;
    constexpr float c6 = kFromZero ? 0.00021613015269394964f : 0.00015353370690718293f;
    Vec p = Vec::fma(f, Vec::set1(c6), Vec::set1(c5));
    p = Vec::fma(f, p, Vec::set1(c4));
    p = Vec::fma(f, p, Vec::set1(c3));
    p = Vec::fma(f, p, Vec::set1(c2));
    p = Vec::fma(f, p, Vec::set1(c1));
    return Vec::fma(f, p, Vec::set1(1.0f));
  }
};

inline Vec exp2(Vec x) { return Vec::exp2(x, Exp2Fraction{}); }

inline float exp2_scalar(float x) {
  float lanes[Vec::kLanes];
  exp2(Vec::set1(x)).store(lanes);
  return lanes[0];
}

inline float row_maximum(const float* s, int n) {
  Vec even = Vec::set1(-kInfinity);
  Vec odd = even;
  // Scores come first: a NaN among them is passed over here and resurfaces in exp2.
  for (int i = 0; i < n; i += 2 * Vec::kLanes) {
    even = Vec::max(Vec::load(s + i), even);
    if (i + Vec::kLanes < n) odd = Vec::max(Vec::load(s + i + Vec::kLanes), odd);
  }
  return Vec::max(even, odd).reduce_max();
}

/// Moves the row's maximum, rescales its sum and accumulators. Returns what to subtract from the
/// scaled scores: the maximum, or 0 while that is -inf, so that exp2(-inf - 0) is 0 and not NaN.
inline float move_maximum(const SoftmaxBlock& block, int row, float block_maximum) {
  const float scaled = block_maximum * block.scale_log2;
  if (block.first) {
    block.max[row] = scaled;
    block.sum[row] = 0.0f;
    return scaled == -kInfinity ? 0.0f : scaled;
  }
  const float before = block.max[row];
  if (!(scaled > before)) return before == -kInfinity ? 0.0f : before;
  block.max[row] = scaled;
  const float factor = exp2_scalar(before - scaled);
  block.sum[row] *= factor;
  if (block.out != nullptr) {
    float* out = block.out + row * block.ldo;
    const Vec factors = Vec::set1(factor);
    for (int i = 0; i < block.d; i += Vec::kLanes) (Vec::load(out + i) * factors).store(out + i);
  }
  return scaled;
}

/// `put(row, column, P)` stores a vector of probabilities.
template <class Put>
void softmax(const SoftmaxBlock& block, Put put) {
  constexpr int kRows = 16;  // row maxima of a group are found first: their latencies overlap
  const Vec scale = Vec::set1(block.scale_log2);
  for (int group = 0; group < block.m; group += kRows) {
    const int rows = block.m - group < kRows ? block.m - group : kRows;
    float shifts[kRows];
    for (int r = 0; r < rows; ++r) {
      shifts[r] = row_maximum(block.s + (group + r) * block.lds, block.n);
    }
    for (int r = 0; r < rows; ++r) shifts[r] = move_maximum(block, group + r, shifts[r]);
    for (int r = 0; r < rows; ++r) {
      const int row = group + r;
      const float* s = block.s + row * block.lds;
      const Vec shift = Vec::set1(shifts[r]);
      Vec even = Vec::zero();
      Vec odd = even;
      int i = 0;
      for (; i + 2 * Vec::kLanes <= block.n; i += 2 * Vec::kLanes) {
        const Vec p = exp2(Vec::fms(Vec::load(s + i), scale, shift));
        const Vec q = exp2(Vec::fms(Vec::load(s + i + Vec::kLanes), scale, shift));
        even = even + p;
        odd = odd + q;
        put(row, i, p);
        put(row, i + Vec::kLanes, q);
      }
      if (i < block.n) {
        const Vec p = exp2(Vec::fms(Vec::load(s + i), scale, shift));
        even = even + p;
        put(row, i, p);
      }
      block.sum[row] += (even + odd).reduce_add();
    }
  }
}

inline void softmax_f32(const SoftmaxBlock& block) {
  softmax(block, [&](int row, int i, Vec p) { p.store(block.s + row * block.lds + i); });
}

/// `put(key, column, P, dS)` stores one vector of each; called for consecutive keys, columns
/// inside.
template <class Put>
void gradient(const GradientBlock& block, Put put) {
  const Vec scale = Vec::set1(block.scale);
  const Vec log2e = Vec::set1(1.44269504f);
  for (int key = 0; key < block.keys; ++key) {
    const float* s = block.s + key * block.ld;
    const float* dp = block.dp + key * block.ld;
    const bool real = key < block.valid;
    for (int i = 0; i < block.queries; i += Vec::kLanes) {
      Vec p = Vec::zero();
      Vec ds = Vec::zero();
      if (real) {
        // The difference first: where P is large it is small, and so is the error of its scaling.
        p = exp2(Vec::fms(Vec::load(s + i), scale, Vec::load(block.lse + i)) * log2e);
        ds = p * (Vec::load(dp + i) - Vec::load(block.delta + i));
      }
      put(key, i, p, ds);
    }
  }
}

inline void gradient_f32(const GradientBlock& block) {
  gradient(block, [&](int key, int i, Vec p, Vec ds) {
    p.store(block.s + key * block.ld + i);
    ds.store(block.dp + key * block.ld + i);
  });
}

}  // namespace
}  // namespace vidsparse::cpu
