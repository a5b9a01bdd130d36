#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"

namespace vidsparse::cuda::sm90 {

std::size_t attend_bytes(const Context& context, const AttendArgs& args);
/// Block-sparse attention over a bitmap, gate and coarse output added. Throws Error naming a tensor
/// whose address or strides TMA cannot take.
void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream);

}  // namespace vidsparse::cuda::sm90
