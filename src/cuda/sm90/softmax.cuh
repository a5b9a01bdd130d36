#pragma once

#include <cstdint>

#include "cuda/ptx/math.cuh"

namespace vidsparse::cuda::sm90 {

/// The running softmax of the two rows a thread holds in a warpgroup's 64 x N accumulators: value i
/// belongs to row i / 2 % 2, and a row's values lie in the four threads of a quad.
///
/// Everything is in units of log2. The maximum a row's weights are taken against lags behind the
/// true one by up to 2^8 before the accumulators are rescaled (fp32 sums and the 8 or 11 bits of a
/// weight do not mind), so most fragments rescale nothing.
class Softmax {
 public:
  __device__ explicit Softmax(float scale_log2) : scale_(scale_log2) {}

  /// Turns the scores of a fragment into weights and adds them up. Then rescale() the output,
  /// before these weights add to it.
  __device__ void weigh(float (&scores)[32]) {
    float most[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 1; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0U, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0U, most[r], 2));
    }
    grown_ =
        __any_sync(~0U, (most[0] - max_[0]) * scale_ > kLag || (most[1] - max_[1]) * scale_ > kLag);
    if (grown_) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float former = max_[r];
        max_[r] = fmaxf(former, most[r]);
        // -inf before and after is no growth; their difference is no number.
        factor_[r] = former == max_[r] ? 1.0F : ptx::exp2_approximate((former - max_[r]) * scale_);
        sum_[r] *= factor_[r];
      }
    }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) shift[r] = max_[r] == -INFINITY ? 0.0F : -max_[r] * scale_;
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      scores[i] = ptx::exp2_approximate(fmaf(scores[i], scale_, shift[i / 2 % 2]));
      part[i % 4] += scores[i];
    }
    sum_[0] += part[0] + part[1];
    sum_[1] += part[2] + part[3];
  }

  template <int Values>
  __device__ void rescale(float (&output)[Values]) const {
    if (!grown_) return;
#pragma unroll
    for (int i = 0; i < Values; ++i) output[i] *= factor_[i / 2 % 2];
  }

  /// At the end, once: the rows' sums over the quad.
  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(~0U, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(~0U, sum_[r], 2);
    }
  }

  /// What a row's accumulators are multiplied by; 0 for a row without weight.
  __device__ float inverse(int r) const { return sum_[r] == 0 ? 0.0F : 1.0F / sum_[r]; }
  /// Natural log-sum-exp; -inf for a row without weight.
  __device__ float log_sum_exp(int r) const {
    constexpr float kLn2 = 0.693147180559945F;
    return sum_[r] == 0 ? -INFINITY : fmaf(max_[r], scale_, log2f(sum_[r])) * kLn2;
  }
  __device__ bool empty(int r) const { return sum_[r] == 0; }

 private:
  static constexpr float kLag = 8;

  float scale_;
  float max_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {0, 0};
  float factor_[2] = {1, 1};
  bool grown_ = false;
};

}  // namespace vidsparse::cuda::sm90
