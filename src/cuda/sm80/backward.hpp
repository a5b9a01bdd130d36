#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"
#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {

/// Once for a plan: lets the kernels use the device's shared memory.
void prepare_backward(const Context& context, Shape shape);

std::size_t backward_bytes(const Context& context, const BackwardArgs& args);

/// All gradients, without atomics: after common/backward.hpp's steps one pass by key and one by
/// query. Throws Error naming a tensor whose rows cannot be copied by 16 bytes.
void backward(const Context& context, Shape shape, const BackwardArgs& args, Workspace workspace,
              cudaStream_t stream);

}  // namespace vidsparse::cuda::sm80
