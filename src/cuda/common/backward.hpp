#pragma once

#include <cuda_runtime_api.h>

#include "core/workspace.hpp"
#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table.cuh"

namespace vidsparse::cuda {

/// What the passes over the mask need of the steps before them, in workspace.
struct BackwardParts {
  /// [B, H, query fragments, 2, 64]: of each slot its lse in units of log2 and delta. A slot
  /// without a weight (a pad, or a row of lse = -inf) has delta 0 and an infinite lse: +inf where
  /// loads by a box find zeros, -inf where memory may hold anything.
  float* rows = nullptr;
  /// [B, H, query fragments]; valid: the slots that have weights. With edge boxes see prepare_rows.
  KeyFragment* queries = nullptr;
  /// [key_batches, key fragments]
  KeyFragment* keys = nullptr;
  std::int32_t key_batches = 1;
  TileMaskRef by_key;  ///< [B, H, Nk, Nq], the mask transposed

  // With a gate; all f32, dense.
  PoolArgs pool;          ///< of q, k, v again: qc, kc, vc
  TensorRef d_oc;         ///< [B, H, Nq, D]
  TensorRef coarse_rows;  ///< [B, H, Nq, 4]: max, 1 / sum (0: no gradient), d_oc . oc, unused
  // What each valid token of a tile receives on top of its fine gradient.
  TensorRef dqc;  ///< [B, H, Nq, D]
  TensorRef dkc;  ///< [B, G, Nk, D]
  TensorRef dvc;  ///< [B, G, Nk, D]
};

BackwardParts take_backward_parts(core::Arena& arena, const Context& context,
                                  const BackwardArgs& args);

/// The key tiles of each head by the lists of parts.by_key, for TableWork::order.
ListOrder take_key_order(core::Arena& arena, const Context& context, const BackwardParts& parts);

/// What fills parts.keys.
TableWork keys_table(const Context& context, const BackwardArgs& args, const BackwardParts& parts);

/// Once for a plan: lets the coarse kernels use the device's shared memory.
void prepare_coarse_backward(const Context& context);

/// All that comes before the passes, dgate included: pool, prepare and coarse backward with a gate,
/// prepare alone without, and the transposed mask. `keys` is filled: parts.keys and whatever
/// counters and order the passes have. Rows of out, dout, gate and of all gradients must be aligned
/// to 16 bytes; throws Error naming the one that is not, before any launch. `edges` of the queries:
/// see prepare_rows.
void begin_backward(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                    const TableWork& keys, cudaStream_t stream, const EdgeBoxes& edges = {});

// The steps one by one.

/// Fills rows, queries and dgate; with a gate d_oc and coarse_rows. Fragments that fit one of
/// `edges` have their rows in its order (EdgeBoxes::ordered), and are described by it in `queries`;
/// where there are any, `valid` of other fragments tells only whether none, some or all slots have
/// weights.
void prepare_rows(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                  cudaStream_t stream, const EdgeBoxes& edges);
/// From the pooled tensors, d_oc and coarse_rows: dqc, dkc and dvc.
void coarse_backward(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                     cudaStream_t stream);
/// Exchanges query and key tiles; `transposed` is dense and written whole.
void transpose_mask(const TileMaskView& mask, const TileMaskRef& transposed, cudaStream_t stream);

}  // namespace vidsparse::cuda
