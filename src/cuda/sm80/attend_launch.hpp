#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm80/attend_parameters.hpp"
#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// The attend kernel of one element type, head_dim and shape. Instances are compiled in
/// attend_large.cu and attend_small.cu.
template <class T, int HeadDim, Shape kShape>
struct AttendLaunch {
  /// Once for a plan: lets the kernel use its shared memory.
  static void prepare();
  static void run(const AttendParameters<T>& parameters, dim3 blocks, cudaStream_t stream);
};

}  // namespace vidsparse::cuda::sm80
