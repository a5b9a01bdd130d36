#include "cuda/sm80/gradient_instances.cuh"

namespace vidsparse::cuda::sm80 {

template struct GradientLaunch<__nv_bfloat16, 64, true, Shape::large>;
template struct GradientLaunch<__nv_bfloat16, 64, false, Shape::large>;
template struct GradientLaunch<__nv_bfloat16, 128, true, Shape::large>;
template struct GradientLaunch<__nv_bfloat16, 128, false, Shape::large>;
template struct GradientLaunch<__half, 64, true, Shape::large>;
template struct GradientLaunch<__half, 64, false, Shape::large>;
template struct GradientLaunch<__half, 128, true, Shape::large>;
template struct GradientLaunch<__half, 128, false, Shape::large>;

}  // namespace vidsparse::cuda::sm80
