#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"
#include "vidsparse/backend.hpp"

namespace vidsparse::cuda::sm90 {

/// Once for a plan: lets the kernels use the device's shared memory.
void prepare_backward(const Context& context);

std::size_t backward_bytes(const Context& context, const BackwardArgs& args);

/// Gradients of the whole op, without atomics: the same bits from run to run. Throws Error naming a
/// tensor whose strides cannot be read or written so.
void backward(const Context& context, const BackwardArgs& args, Workspace workspace,
              cudaStream_t stream);

}  // namespace vidsparse::cuda::sm90
