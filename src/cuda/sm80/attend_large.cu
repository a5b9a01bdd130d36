#include "cuda/sm80/attend_instances.cuh"

namespace vidsparse::cuda::sm80 {

template struct AttendLaunch<__nv_bfloat16, 64, Shape::large>;
template struct AttendLaunch<__nv_bfloat16, 128, Shape::large>;
template struct AttendLaunch<__half, 64, Shape::large>;
template struct AttendLaunch<__half, 128, Shape::large>;

}  // namespace vidsparse::cuda::sm80
