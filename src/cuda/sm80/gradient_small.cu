#include "cuda/sm80/gradient_instances.cuh"

namespace vidsparse::cuda::sm80 {

template struct GradientLaunch<__nv_bfloat16, 64, true, Shape::small>;
template struct GradientLaunch<__nv_bfloat16, 64, false, Shape::small>;
template struct GradientLaunch<__nv_bfloat16, 128, true, Shape::small>;
template struct GradientLaunch<__nv_bfloat16, 128, false, Shape::small>;
template struct GradientLaunch<__half, 64, true, Shape::small>;
template struct GradientLaunch<__half, 64, false, Shape::small>;
template struct GradientLaunch<__half, 128, true, Shape::small>;
template struct GradientLaunch<__half, 128, false, Shape::small>;

}  // namespace vidsparse::cuda::sm80
