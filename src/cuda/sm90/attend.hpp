#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table.cuh"
#include "vidsparse/backend.hpp"

namespace vidsparse::cuda::sm90 {

/// Whether the kernels, forward and backward, can count a problem's fragments and the driver can
/// describe its tensors.
Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key);

/// Once for a plan: lets the kernels use the device's shared memory.
void prepare_attend(const Context& context);

std::size_t attend_bytes(const Context& context, const AttendArgs& args);

/// Throws Error naming a tensor whose rows are not 16-byte aligned, or q, k or v where the copy
/// engine cannot read them: q as well, which only the backward reads so, for a training run must
/// not fail there first.
void check_attend(const AttendArgs& args);

/// The table of a few kilobytes that attend reads in the same workspace, and its counters.
TableWork attend_table(const Context& context, const AttendArgs& args, Workspace workspace);

/// Block-sparse attention over a bitmap with the gated coarse output added: one launch. Throws
/// Error for tensors that span 2^40 bytes and more, which the driver's encoder finds.
void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream);

}  // namespace vidsparse::cuda::sm90
