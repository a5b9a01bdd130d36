#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "vidsparse/backend.hpp"
#include "vidsparse/export.hpp"
#include "vidsparse/parallel.hpp"
#include "vidsparse/problem.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_layout.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse {

// Shapes below: B batch, H query heads, G key/value heads, Sq and Sk tokens (pad slots included),
// D head_dim, Nq and Nk tiles. "acc" is f32, or f64 where the problem's dtype is f64. Tensors of a
// call must not overlap its outputs, except that gradients may be views of one fused buffer.

/// Compression: means over the valid tokens of each tile, accumulated and kept in acc; 0 for empty
/// tiles. Absent outputs are not computed, and their inputs may be absent.
struct PoolArgs {
  TensorView q;  ///< [B, Sq, H, D]
  TensorView k;  ///< [B, Sk, G, D]
  TensorView v;  ///< [B, Sk, G, D]
  Lengths lengths;
  TensorRef qc;  ///< acc [B, H, Nq, D]
  TensorRef kc;  ///< acc [B, G, Nk, D]
  TensorRef vc;  ///< acc [B, G, Nk, D]
};

/// Scores s = (qc . kc) * scale, the exact top k as a bitmap and, if `oc` is given, the coarse
/// output softmax(s) . vc with its rows' max and sum. Pooled tensors may be the caller's own.
struct SelectArgs {
  TensorView qc;    ///< acc [B, H, Nq, D]
  TensorView kc;    ///< acc [B, G, Nk, D]
  TensorView vc;    ///< acc [B, G, Nk, D]; only with `oc`
  Lengths lengths;  ///< tell which tiles are empty
  Selection selection;
  std::optional<double> scale;  ///< default D^-0.5
  TileMaskRef mask;             ///< [B, H, Nq, Nk], written whole
  TensorRef oc;                 ///< acc [B, H, Nq, D]
  TensorRef coarse_max;         ///< acc [B, H, Nq]: max_j s_ij; with `oc` only
  TensorRef coarse_sum;         ///< acc [B, H, Nq]: sum_j exp(s_ij - max); with `oc` only
};

/// Block-sparse attention over a mask, with the pooled branch added when there is a gate. Rows
/// without a selected token are 0 with lse -inf; pad slots are written likewise.
struct AttendArgs {
  TensorView q;  ///< [B, Sq, H, D]
  TensorView k;  ///< [B, Sk, G, D]
  TensorView v;  ///< [B, Sk, G, D]
  Lengths lengths;
  std::optional<double> scale;
  TileMaskView mask;  ///< [B, H, Nq, Nk]; a bit may name an empty tile
  Gate gate;
  TensorView oc;  ///< acc [B, H, Nq, D]; with a gate
  TensorRef out;  ///< [B, Sq, H, D]
  TensorRef lse;  ///< optional, acc [B, H, Sq], natural logarithm
};

/// The whole op: pool, select, attend.
struct ForwardArgs {
  TensorView q;  ///< [B, Sq, H, D]
  TensorView k;  ///< [B, Sk, G, D]
  TensorView v;  ///< [B, Sk, G, D]
  Lengths lengths;
  Selection selection;
  std::optional<double> scale;
  Gate gate;
  TensorRef out;         ///< [B, Sq, H, D]
  TensorRef lse;         ///< optional, acc [B, H, Sq]
  TileMaskRef mask;      ///< optional: the selection, [B, H, Nq, Nk]
  TensorRef oc;          ///< optional, with a gate: acc [B, H, Nq, D]
  TensorRef coarse_max;  ///< optional, with a gate: acc [B, H, Nq]
  TensorRef coarse_sum;  ///< optional, with a gate: acc [B, H, Nq]
};

/// Gradients of the whole op, or of block-sparse attention on its own (no gate: then no oc and
/// coarse rows). What the forward saved comes back: out, lse, mask and, with a gate, oc and the
/// coarse rows; `out` is the forward's, gate * oc included.
struct BackwardArgs {
  TensorView q;  ///< [B, Sq, H, D]
  TensorView k;  ///< [B, Sk, G, D]
  TensorView v;  ///< [B, Sk, G, D]
  Lengths lengths;
  std::optional<double> scale;
  TileMaskView mask;  ///< [B, H, Nq, Nk]
  Gate gate;
  TensorView out;         ///< [B, Sq, H, D]
  TensorView lse;         ///< acc [B, H, Sq]
  TensorView oc;          ///< acc [B, H, Nq, D]; with a gate
  TensorView coarse_max;  ///< acc [B, H, Nq]; with a gate
  TensorView coarse_sum;  ///< acc [B, H, Nq]; with a gate
  TensorView dout;        ///< [B, Sq, H, D]
  TensorView dlse;        ///< optional, acc [B, H, Sq]
  TensorRef dq;           ///< [B, Sq, H, D], strides of its own
  TensorRef dk;           ///< [B, Sk, G, D]
  TensorRef dv;           ///< [B, Sk, G, D]
  TensorRef dgate;        ///< with a tensor gate, optional: [B, Sq, H, D]
};

/// The arguments of the backward of a forward that gave everything that is saved. Yet to be filled
/// in: dout, dlse and the gradients.
inline BackwardArgs backward_of(const ForwardArgs& forward) {
  BackwardArgs args;
  args.q = forward.q;
  args.k = forward.k;
  args.v = forward.v;
  args.lengths = forward.lengths;
  args.scale = forward.scale;
  args.mask = forward.mask;
  args.gate = forward.gate;
  args.out = forward.out;
  args.lse = forward.lse;
  args.oc = forward.oc;
  args.coarse_max = forward.coarse_max;
  args.coarse_sum = forward.coarse_sum;
  return args;
}

/// Scratch memory, the caller's: 64-byte aligned, at least Plan::workspace_bytes(args) of it, on
/// the plan's device. Holds nothing between calls.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

struct PlanOptions {
  Device device;
  std::string backend;   ///< forces one by name; before it, VIDSPARSE_BACKEND does
  ParallelFor parallel;  ///< threads of the CPU backends
};

class KernelSet;  // one backend's kernels, prepared for one problem

/// A problem validated, tiled and bound to a backend: made once, run many times. Immutable; may be
/// shared by threads, each call with a workspace of its own. A call neither allocates nor, on a
/// GPU, synchronises; it throws Error before anything is written when an argument does not fit.
class VIDSPARSE_API Plan {
 public:
  /// Throws Error: invalid_argument naming what is wrong with the problem, or unsupported with
  /// every backend's reason. There is no silent fall-back.
  explicit Plan(const Problem& problem, const PlanOptions& options = {});
  ~Plan();
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;

  const Problem& problem() const;
  const TileLayout& query_layout() const;
  const TileLayout& key_layout() const;
  const std::string& backend() const;         ///< "cpu", "reference", ...
  const std::string& backend_detail() const;  ///< what it chose, e.g. the instruction set
  const Device& device() const;

  /// Of the selection: B, H, Nq, Nk.
  MaskShape mask_shape() const;
  /// k for a selection's sparsity or top_k, counted among video key tiles; 0 if there are none.
  std::int64_t resolve_top_k(const Selection& selection) const;

  /// Bytes a call with these arguments needs; depends on which of them are present, not on data.
  std::size_t workspace_bytes(const PoolArgs& args) const;
  std::size_t workspace_bytes(const SelectArgs& args) const;
  std::size_t workspace_bytes(const AttendArgs& args) const;
  std::size_t workspace_bytes(const ForwardArgs& args) const;
  std::size_t workspace_bytes(const BackwardArgs& args) const;

  /// `stream`: the device's stream (cudaStream_t); ignored on the CPU, where a call returns when
  /// its work is done.
  void pool(const PoolArgs& args, Workspace workspace, void* stream = nullptr) const;
  void select(const SelectArgs& args, Workspace workspace, void* stream = nullptr) const;
  void attend(const AttendArgs& args, Workspace workspace, void* stream = nullptr) const;
  void forward(const ForwardArgs& args, Workspace workspace, void* stream = nullptr) const;
  void backward(const BackwardArgs& args, Workspace workspace, void* stream = nullptr) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

/// k of the spec: max(1, min(ceil((1 - sparsity) * tiles), tiles)) in double precision; 0 for no
/// tiles. Throws unless 0 <= sparsity < 1.
VIDSPARSE_API std::int64_t top_k_of(double sparsity, std::int64_t tiles);

}  // namespace vidsparse
