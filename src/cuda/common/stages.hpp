#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/common/pooled_planes.hpp"

namespace vidsparse::cuda {

/// Means of the tiles of whichever of q, k and v are asked for: one launch, no workspace. bf16 and
/// fp16, head_dim 64 and 128, any strides (16-byte aligned rows are read faster). Blocks of their
/// own fill a table that a later launch needs.
void pool(const Context& context, const PoolArgs& args, cudaStream_t stream,
          const TableWork& table = {});

/// The same of q, k and, where `planes` has room for it, v, as select reads them. The outputs of
/// `args` are not looked at.
void pool_planes(const Context& context, const PoolArgs& args, const PooledPlanes& planes,
                 cudaStream_t stream, const TableWork& table);

/// Once for a plan: lets the select kernels use the device's shared memory.
void prepare_select(const Context& context);
/// Rows of scores stay in shared memory; where they outgrow it, they take workspace.
std::size_t select_bytes(const Context& context);
/// Scores, top k, bitmap and, with `oc`, the coarse output of split pooled tensors: one launch. The
/// pooled tensors of `args` are not looked at.
void select(const Context& context, const SelectArgs& args, const PooledPlanes& planes,
            Workspace workspace, cudaStream_t stream);

}  // namespace vidsparse::cuda
