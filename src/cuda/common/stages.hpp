#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"

namespace vidsparse::cuda {

/// Means of the tiles of whichever of q, k and v are asked for: one launch, no workspace. bf16 and
/// fp16, head_dim 64 and 128, any strides (16-byte aligned rows are read faster).
void pool(const Context& context, const PoolArgs& args, cudaStream_t stream);

/// Once for a plan: lets the select kernels use the device's shared memory.
void prepare_select(const Context& context);
/// Rows of scores stay in shared memory; where they outgrow it, they take workspace.
std::size_t select_bytes(const Context& context, const SelectArgs& args);
/// Scores, top k, bitmap and, with `oc`, the coarse output: one launch.
void select(const Context& context, const SelectArgs& args, Workspace workspace,
            cudaStream_t stream);

}  // namespace vidsparse::cuda
