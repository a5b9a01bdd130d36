#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/workspace.hpp"
#include "cuda/common/context.hpp"

namespace vidsparse::cuda {

/// Pooled tensors as select reads them: each row's D numbers split in two bf16 (split.cuh), the
/// high parts before the low ones, which is D words of two. Dense; rows of empty tiles are 0.
struct PooledPlanes {
  std::uint32_t* qc = nullptr;  ///< [B, H, Nq, D]
  std::uint32_t* kc = nullptr;  ///< [B, G, Nk, D]
  std::uint32_t* vc = nullptr;  ///< [B, G, Nk, D]; null: no coarse output
};

PooledPlanes take_planes(core::Arena& arena, const Context& context, bool with_values);

/// Splits a call's own pooled tensors, of any strides: one launch.
void split_pooled(const Context& context, const SelectArgs& args, const PooledPlanes& planes,
                  cudaStream_t stream);

}  // namespace vidsparse::cuda
