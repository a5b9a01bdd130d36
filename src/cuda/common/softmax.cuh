#pragma once

#include <cstdint>

#include "cuda/ptx/math.cuh"

namespace vidsparse::cuda {

/// Turns the scores of slots that are not valid into -inf. Value i of the 64 columns a lane shares
/// with its quad lies in column i / 4 * 8 + i % 2 and two more for each lane before it.
__device__ inline void mask_scores(std::uint64_t valid, int lane, float (&scores)[32]) {
  valid >>= lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if ((valid >> (i / 4 * 8 + i % 2) & 1) == 0) scores[i] = -INFINITY;
  }
}

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
    float most[2];
    find_most(scores, most);
    grown_ = __any_sync(~0U, outgrown(most));
    if (grown_) grow(most);
    exponentiate(scores);
  }

  // The steps of weigh(), for whoever has several pairs of rows to take through each together.

  /// The rows' greatest scores.
  __device__ static void find_most(const float (&scores)[32], float (&most)[2]) {
    most[0] = scores[0];
    most[1] = scores[2];
#pragma unroll
    for (int i = 1; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0U, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0U, most[r], 2));
    }
  }

  /// Whether this lane's maxima lag too far behind.
  __device__ bool outgrown(const float (&most)[2]) const {
    return (most[0] - max_[0]) * scale_ > kLag || (most[1] - max_[1]) * scale_ > kLag;
  }

  /// Takes new maxima; the output must be rescaled.
  __device__ void grow(const float (&most)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float former = max_[r];
      max_[r] = fmaxf(former, most[r]);
      // -inf before and after is no growth; their difference is no number.
      factor_[r] = former == max_[r] ? 1.0F : ptx::exp2_approximate((former - max_[r]) * scale_);
      sum_[r] *= factor_[r];
    }
  }

  __device__ void exponentiate(float (&scores)[32]) {
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
    if (grown_) rescale_always(output);
  }
  template <int Values>
  __device__ void rescale_always(float (&output)[Values]) const {
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
    return sum_[r] == 0 ? -INFINITY : fmaf(max_[r] * scale_, kLn2, logf(sum_[r]));
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

}  // namespace vidsparse::cuda
