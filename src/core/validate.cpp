#include "core/validate.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "core/check.hpp"
#include "core/workspace.hpp"

namespace vidsparse::core {
namespace {

using Sides = std::array<std::int64_t, 4>;

bool aligned(const void* data, std::size_t to) {
  return reinterpret_cast<std::uintptr_t>(data) % to == 0;
}

std::string mask_text(const MaskShape& shape) {
  return "[" + std::to_string(shape.batch) + ", " + std::to_string(shape.heads) + ", " +
         std::to_string(shape.query_tiles) + ", " + std::to_string(shape.key_tiles) + "] tiles";
}

// Expected shapes, from the names of the headers' comments, and the checks against them.
class Checker {
 public:
  explicit Checker(const Setting& setting)
      : problem_(setting.problem),
        device_(setting.device),
        query_(setting.query),
        key_(setting.key),
        accumulator_(accumulator_of(problem_.dtype)) {}

  void query_tokens(const char* name, const TensorView& tensor) const {
    require(name, tensor, problem_.dtype, 4,
            {problem_.batch, query_.tokens(), problem_.heads_q, problem_.head_dim});
  }
  void key_tokens(const char* name, const TensorView& tensor) const {
    require(name, tensor, problem_.dtype, 4,
            {problem_.batch, key_.tokens(), problem_.key_heads(), problem_.head_dim});
  }
  void query_pooled(const char* name, const TensorView& tensor) const {
    require(name, tensor, accumulator_, 4,
            {problem_.batch, problem_.heads_q, query_.tiles(), problem_.head_dim});
  }
  void key_pooled(const char* name, const TensorView& tensor) const {
    require(name, tensor, accumulator_, 4,
            {problem_.batch, problem_.key_heads(), key_.tiles(), problem_.head_dim});
  }
  void tile_rows(const char* name, const TensorView& tensor) const {
    require(name, tensor, accumulator_, 3, {problem_.batch, problem_.heads_q, query_.tiles()});
  }
  void token_rows(const char* name, const TensorView& tensor) const {
    require(name, tensor, accumulator_, 3, {problem_.batch, problem_.heads_q, query_.tokens()});
  }

  // Outputs: no two elements may share memory.
  void written(const char* name, const TensorView& tensor) const {
    if (tensor.elements() == 0) return;
    for (std::size_t i = 0; i < static_cast<std::size_t>(tensor.rank); ++i) {
      if (tensor.shape[i] > 1 && tensor.strides[i] == 0) {
        refuse(name, "an output without stride 0", "stride 0 in dimension " + std::to_string(i));
      }
    }
  }

  void written_query_tokens(const char* name, const TensorView& tensor) const {
    query_tokens(name, tensor);
    written(name, tensor);
  }
  void written_key_tokens(const char* name, const TensorView& tensor) const {
    key_tokens(name, tensor);
    written(name, tensor);
  }

  void written_tile_rows(const char* name, const TensorView& tensor) const {
    tile_rows(name, tensor);
    written(name, tensor);
  }

  void absent(const char* name, const TensorView& tensor, const char* when) const {
    if (tensor) refuse(name, std::string("no tensor ") + when, to_string(tensor));
  }

  void lengths(const Lengths& lengths) const {
    side_lengths("lengths.query", lengths.query, query_);
    side_lengths("lengths.key", lengths.key, key_);
  }

  void mask(const char* name, const TileMaskView& mask) const {
    const MaskShape shape = {problem_.batch, problem_.heads_q, query_.tiles(), key_.tiles()};
    if (!mask && shape.words() > 0) refuse(name, "a bitmap " + mask_text(shape), "none");
    if (mask && mask.shape != shape) refuse(name, mask_text(shape), mask_text(mask.shape));
    const std::size_t to = device_.kind == Device::Kind::cpu ? 8 : 16;
    if (!aligned(mask.words, to)) {
      refuse(name, "words aligned to " + std::to_string(to) + " bytes", "another address");
    }
  }

  void written_mask(const char* name, const TileMaskRef& bitmap) const {
    mask(name, bitmap);
    if (bitmap.shape.words() == 0) return;
    if ((bitmap.shape.batch > 1 && bitmap.batch_stride == 0) ||
        (bitmap.shape.heads > 1 && bitmap.head_stride == 0)) {
      refuse(name, "a bitmap of its own for each batch entry and head", "a broadcast one");
    }
  }

  void scale(const std::optional<double>& scale) const {
    // The factor, times log2(e) where powers of 2 are computed, is kept in the accumulator's type.
    const double most = accumulator_ == DType::f64 ? std::numeric_limits<double>::max() : 1e38;
    if (scale && !(std::abs(*scale) <= most)) {
      refuse("scale", "a finite number, at most 1e38 in magnitude for f32 scores",
             std::to_string(*scale));
    }
  }

  void gate(const Gate& gate) const {
    if (gate.is_tensor()) query_tokens("gate", gate.tensor());
  }

  void selection(const Selection& selection) const {
    resolve_top_k(selection, key_);
    if (selection.always) mask("always", selection.always);
  }

  /// What every call that attends reads.
  template <class Args>
  void inputs(const Args& args) const {
    query_tokens("q", args.q);
    key_tokens("k", args.k);
    key_tokens("v", args.v);
    lengths(args.lengths);
    scale(args.scale);
    gate(args.gate);
  }
  /// What every forward call writes.
  template <class Args>
  void outputs(const Args& args) const {
    written_query_tokens("out", args.out);
    if (!args.lse) return;
    token_rows("lse", args.lse);
    written("lse", args.lse);
  }

  void written_oc(const TensorView& oc) const {
    query_pooled("oc", oc);
    written("oc", oc);
  }
  /// What a call may write beside oc.
  template <class Args>
  void coarse_rows(const Args& args) const {
    if (args.coarse_max) written_tile_rows("coarse_max", args.coarse_max);
    if (args.coarse_sum) written_tile_rows("coarse_sum", args.coarse_sum);
  }
  template <class Args>
  void no_coarse_rows(const Args& args, const char* when) const {
    absent("coarse_max", args.coarse_max, when);
    absent("coarse_sum", args.coarse_sum, when);
  }

 private:
  void require(const char* name, const TensorView& tensor, DType dtype, int rank,
               Sides shape) const {
    // Made only to be read: in each call it would cost a microsecond and more.
    const auto expected = [&] { return to_string(TensorView::dense(nullptr, dtype, rank, shape)); };
    bool same = tensor.rank == rank && tensor.dtype == dtype;
    for (std::size_t i = 0; same && i < static_cast<std::size_t>(rank); ++i) {
      same = tensor.shape[i] == shape[i];
    }
    if (!same) refuse(name, expected(), to_string(tensor));
    if (tensor.elements() == 0) return;
    if (tensor.data == nullptr) refuse(name, expected(), "a null pointer");
    const std::size_t last = static_cast<std::size_t>(rank) - 1;
    if (shape[last] > 1 && tensor.strides[last] != 1) {
      refuse(name, "a contiguous last dimension", "stride " + std::to_string(tensor.strides[last]));
    }
    if (!aligned(tensor.data, size_of(dtype))) {
      refuse(name, "data aligned to its dtype", "a misaligned address");
    }
  }

  void side_lengths(const char* name, const TensorView& lengths, const TileLayout& layout) const {
    if (!lengths) return;
    const int rank = lengths.rank == 1 ? 1 : 2;
    const Sides shape =
        rank == 1 ? Sides{layout.length_columns()} : Sides{problem_.batch, layout.length_columns()};
    require(name, lengths, DType::i32, rank, shape);
  }

  const Problem& problem_;
  const Device& device_;
  const TileLayout& query_;
  const TileLayout& key_;
  DType accumulator_;
};

}  // namespace

void check_problem(const Problem& problem) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) refuse(name, ">= " + std::to_string(least), std::to_string(value));
  };
  at_least("batch", problem.batch, 0);
  at_least("heads_q", problem.heads_q, 1);
  at_least("heads_kv", problem.heads_kv, 0);
  at_least("head_dim", problem.head_dim, 1);
  if (problem.heads_q % problem.key_heads() != 0) {
    refuse("heads_kv", "a divisor of heads_q = " + std::to_string(problem.heads_q),
           std::to_string(problem.heads_kv));
  }
  if (!is_floating(problem.dtype)) {
    refuse("dtype", "one of f64, f32, f16, bf16", name_of(problem.dtype));
  }
  const TileLayout query(problem.query, problem.tile);
  const TileLayout key(problem.key_sequence(), problem.tile);
  // Element counts of the largest tensors must fit the index type.
  const std::int64_t rows = checked_product("batch", problem.batch, problem.heads_q);
  for (const TileLayout* side : {&query, &key}) {
    const std::int64_t slots = checked_product("sequence", side->tiles(), problem.tile.tokens());
    checked_product("head_dim", checked_product("sequence", rows, std::max(slots, side->tokens())),
                    checked_product("head_dim", problem.head_dim, 8));
  }
  checked_product("sequence", checked_product("sequence", rows, query.tiles()),
                  checked_sum("sequence", key.tiles(), 127));
}

void check(const Setting& setting, const PoolArgs& args) {
  const Checker checker(setting);
  checker.lengths(args.lengths);
  if (args.qc) {
    checker.query_tokens("q", args.q);
    checker.query_pooled("qc", args.qc);
    checker.written("qc", args.qc);
  }
  if (args.kc) {
    checker.key_tokens("k", args.k);
    checker.key_pooled("kc", args.kc);
    checker.written("kc", args.kc);
  }
  if (args.vc) {
    checker.key_tokens("v", args.v);
    checker.key_pooled("vc", args.vc);
    checker.written("vc", args.vc);
  }
}

void check(const Setting& setting, const SelectArgs& args) {
  const Checker checker(setting);
  checker.query_pooled("qc", args.qc);
  checker.key_pooled("kc", args.kc);
  checker.lengths(args.lengths);
  checker.selection(args.selection);
  checker.scale(args.scale);
  checker.written_mask("mask", args.mask);
  if (!args.oc) return checker.no_coarse_rows(args, "without oc");
  checker.key_pooled("vc", args.vc);
  checker.written_oc(args.oc);
  checker.coarse_rows(args);
}

void check(const Setting& setting, const AttendArgs& args) {
  const Checker checker(setting);
  checker.inputs(args);
  checker.mask("mask", args.mask);
  if (args.gate.is_none()) {
    checker.absent("oc", args.oc, "without a gate");
  } else {
    checker.query_pooled("oc", args.oc);
  }
  checker.outputs(args);
}

void check(const Setting& setting, const ForwardArgs& args) {
  const Checker checker(setting);
  checker.inputs(args);
  checker.selection(args.selection);
  checker.outputs(args);
  if (args.mask) checker.written_mask("mask", args.mask);
  if (args.gate.is_none()) {
    checker.absent("oc", args.oc, "without a gate");
    return checker.no_coarse_rows(args, "without a gate");
  }
  if (args.oc) checker.written_oc(args.oc);
  checker.coarse_rows(args);
}

void check(const Setting& setting, const BackwardArgs& args) {
  const Checker checker(setting);
  checker.inputs(args);
  checker.mask("mask", args.mask);
  checker.query_tokens("out", args.out);
  checker.token_rows("lse", args.lse);
  checker.query_tokens("dout", args.dout);
  if (args.dlse) checker.token_rows("dlse", args.dlse);
  if (args.gate.is_none()) {
    checker.absent("oc", args.oc, "without a gate");
    checker.no_coarse_rows(args, "without a gate");
  } else {
    checker.query_pooled("oc", args.oc);
    checker.tile_rows("coarse_max", args.coarse_max);
    checker.tile_rows("coarse_sum", args.coarse_sum);
  }
  checker.written_query_tokens("dq", args.dq);
  checker.written_key_tokens("dk", args.dk);
  checker.written_key_tokens("dv", args.dv);
  if (!args.gate.is_tensor()) {
    checker.absent("dgate", args.dgate, "without a tensor gate");
  } else if (args.dgate) {
    checker.written_query_tokens("dgate", args.dgate);
  }
}

void check_workspace(Workspace workspace, std::size_t needed) {
  if (workspace.bytes < needed) {
    refuse("workspace", "at least " + std::to_string(needed) + " bytes",
           std::to_string(workspace.bytes));
  }
  if (needed == 0) return;
  if (workspace.data == nullptr) {
    refuse("workspace", std::to_string(needed) + " bytes", "a null pointer");
  }
  if (!aligned(workspace.data, Arena::kAlignment)) {
    refuse("workspace", "64-byte alignment", "another address");
  }
}

}  // namespace vidsparse::core
