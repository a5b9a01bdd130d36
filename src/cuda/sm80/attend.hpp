#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/sm80/shape.hpp"
#include "vidsparse/backend.hpp"

namespace vidsparse::cuda::sm80 {

/// Whether the kernels, forward and backward, can count a problem's fragments.
Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key);

/// Once for a plan: lets the kernels use the device's shared memory.
void prepare_attend(const Context& context, Shape shape);

std::size_t attend_bytes(const Context& context, const AttendArgs& args);

/// Throws Error naming a tensor whose rows cannot be copied by 16 bytes, q, k or v also where a
/// token's offset has more than 31 bits.
void check_attend(const AttendArgs& args);

/// The table of a few kilobytes that attend reads in the same workspace.
TableWork attend_table(const Context& context, const AttendArgs& args, Workspace workspace);

/// Block-sparse attention over a bitmap with the gated coarse output added: one launch.
void attend(const Context& context, Shape shape, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream);

}  // namespace vidsparse::cuda::sm80
