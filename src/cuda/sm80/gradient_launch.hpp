#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm80/gradient_parameters.hpp"
#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// A backward pass of one element type, head_dim and shape. Instances are compiled in
/// gradient_large.cu and gradient_small.cu.
template <class T, int HeadDim, bool ByKey, Shape kShape>
struct GradientLaunch {
  /// Once for a plan: lets the kernel use its shared memory.
  static void prepare();
  static void run(const GradientParameters<T>& parameters, dim3 blocks, cudaStream_t stream);
};

}  // namespace vidsparse::cuda::sm80
