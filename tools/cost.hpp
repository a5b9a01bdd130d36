#pragma once

#include <cstdint>

#include "vidsparse/plan.hpp"

namespace vidsparse::tools {

/// Arithmetic of one forward pass, batch and heads included. A multiply-add counts as two.
struct Flops {
  double dense = 0;   ///< attention of all tokens to all: 4 * D * S * S
  double slots = 0;   ///< selected tile pairs at full size, 4 * D * E * E each: what is quoted as
                      ///< the work of a sparse kernel
  double tokens = 0;  ///< the same without the empty slots of ragged tiles, at mean tile fill
  double select = 0;  ///< scores: 2 * D * Nq * Nk
};

/// `tiles_kept`: k, among video tiles. One sequence for queries and keys.
Flops flops_of(const Plan& plan, std::int64_t tiles_kept, PrefixMode mode);

/// Bytes beyond inputs, outputs and gradients.
struct ExtraMemory {
  std::size_t forward = 0;   ///< inference: the forward's workspace
  std::size_t training = 0;  ///< what the forward saves (lse, bitmap), and the larger workspace
  std::size_t dense_training = 0;  ///< dense attention saves lse
  std::size_t q_bytes = 0;         ///< the measure of it all
};

ExtraMemory extra_memory_of(const Plan& plan, const Selection& selection);

}  // namespace vidsparse::tools
