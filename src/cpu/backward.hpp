#pragma once

#include <cstddef>

#include "cpu/sides.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse::cpu {

/// Gradients of the pooled tensors, scale included; absent without a gate. A valid token receives
/// its tile's divided by the number of valid tokens.
struct CoarseGradients {
  TensorRef dqc;  ///< [B, H, Nq, D]
  TensorRef dkc;  ///< [B, G, Nk, D]
  TensorRef dvc;  ///< [B, G, Nk, D]
};

/// Through the coarse softmax and its products; all fp32. `pooled` holds qc, kc and vc, `dcoarse`
/// is the gradient of oc.
std::size_t coarse_backward_bytes(const Context& context, const BackwardArgs& args);
void coarse_backward(const Context& context, const BackwardArgs& args, const PoolArgs& pooled,
                     const TensorRef& dcoarse, const CoarseGradients& gradients,
                     Workspace workspace);

/// The fine branch; adds `coarse` and writes dq, dk and dv whole. delta [B][H][Sq].
std::size_t attend_backward_bytes(const Context& context, const BackwardArgs& args);
void attend_backward(const Context& context, const BackwardArgs& args, const float* delta,
                     const CoarseGradients& coarse, Workspace workspace);

}  // namespace vidsparse::cpu
