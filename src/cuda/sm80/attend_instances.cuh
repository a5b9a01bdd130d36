#pragma once

#include "cuda/common/context.hpp"
#include "cuda/sm80/attend_config.hpp"
#include "cuda/sm80/attend_kernel.cuh"
#include "cuda/sm80/attend_launch.hpp"

namespace vidsparse::cuda::sm80 {

template <class T, int HeadDim, Shape kShape>
void AttendLaunch<T, HeadDim, kShape>::prepare() {
  using Config = typename AttendShape<HeadDim, kShape>::Config;
  allow_shared(attend_kernel<T, Config>, Config::kSharedBytes);
  prefer_shared(attend_kernel<T, Config>);
}

template <class T, int HeadDim, Shape kShape>
void AttendLaunch<T, HeadDim, kShape>::run(const AttendParameters<T>& parameters, dim3 blocks,
                                           cudaStream_t stream) {
  using Config = typename AttendShape<HeadDim, kShape>::Config;
  attend_kernel<T, Config><<<blocks, Config::kThreads, Config::kSharedBytes, stream>>>(parameters);
  check(cudaGetLastError(), "attend");
}

}  // namespace vidsparse::cuda::sm80
