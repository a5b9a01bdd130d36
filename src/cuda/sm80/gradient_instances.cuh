#pragma once

#include "cuda/common/context.hpp"
#include "cuda/sm80/gradient_config.hpp"
#include "cuda/sm80/gradient_kernel.cuh"
#include "cuda/sm80/gradient_launch.hpp"

namespace vidsparse::cuda::sm80 {

template <class T, int HeadDim, bool ByKey, Shape kShape>
void GradientLaunch<T, HeadDim, ByKey, kShape>::prepare() {
  using Config = typename GradientShape<HeadDim, ByKey, kShape>::Config;
  allow_shared(gradient_kernel<T, Config>, Config::kSharedBytes);
  prefer_shared(gradient_kernel<T, Config>);
}

template <class T, int HeadDim, bool ByKey, Shape kShape>
void GradientLaunch<T, HeadDim, ByKey, kShape>::run(const GradientParameters<T>& parameters,
                                                    dim3 blocks, cudaStream_t stream) {
  using Config = typename GradientShape<HeadDim, ByKey, kShape>::Config;
  gradient_kernel<T, Config>
      <<<blocks, Config::kThreads, Config::kSharedBytes, stream>>>(parameters);
  check(cudaGetLastError(), "backward");
}

}  // namespace vidsparse::cuda::sm80
