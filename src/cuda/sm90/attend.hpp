#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/common/context.hpp"
#include "vidsparse/backend.hpp"

namespace vidsparse::cuda::sm90 {

/// What is chosen by measurement rather than by the problem's rules; docs/kernels/sm90_forward.md.
struct AttendTuning {
  std::int32_t pace_fragments = 0;  ///< key fragments between two steps of the pace; 0: none
  std::int32_t pace_slack = 1;      ///< steps a block may be ahead
};

/// Whether the attend kernel can count a problem's fragments and the driver can describe its
/// tensors.
Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key);

/// Once for a plan: lets the kernels use the device's shared memory.
void prepare_attend(const Context& context);

AttendTuning choose_tuning(const Context& context);

std::size_t attend_bytes(const Context& context, const AttendArgs& args);

/// Block-sparse attention over a bitmap with the gated coarse output added: two launches, of which
/// the first fills a table of a few kilobytes. Throws Error naming a tensor whose strides the copy
/// engine cannot read.
void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream);

/// The same with a tuning of the caller's, for benchmarks.
void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream, const AttendTuning& tuning);

}  // namespace vidsparse::cuda::sm90
