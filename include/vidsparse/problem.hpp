#pragma once

#include <cstdint>
#include <optional>

#include "vidsparse/dtype.hpp"
#include "vidsparse/sequence.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse {

/// What a Plan is made for: everything known before the tensors are.
struct Problem {
  Sequence query;
  std::optional<Sequence> key;  ///< absent: the same tokens as `query`
  TileShape tile;
  std::int64_t batch = 1;       ///< B
  std::int64_t heads_q = 1;     ///< H
  std::int64_t heads_kv = 0;    ///< divides heads_q; 0: the same as heads_q
  std::int64_t head_dim = 128;  ///< D
  DType dtype = DType::bf16;    ///< of q, k, v, gate and their gradients

  const Sequence& key_sequence() const { return key ? *key : query; }
  std::int64_t key_heads() const { return heads_kv == 0 ? heads_q : heads_kv; }
};

/// How Plain key tiles take part in the selection of video query tiles.
enum class PrefixMode : std::uint8_t {
  exempt = 0,   ///< all P of them, plus the top k of the N_v video tiles
  compete = 1,  ///< the top k + P of all N_v + P
};

/// Which key tiles a query tile keeps. Give sparsity or top_k, not both; k counts video tiles.
struct Selection {
  std::optional<double> sparsity;     ///< in [0, 1): k = max(1, min(ceil((1 - sparsity)*N_v), N_v))
  std::optional<std::int64_t> top_k;  ///< in [1, N_v]
  PrefixMode prefix_mode = PrefixMode::exempt;
  TileMaskView always;  ///< optional; OR-ed on top of the k. [B, H, Nq, Nk]
};

/// The weight of the pooled branch: out = fine + gate * oc.
class Gate {
 public:
  /// Pure sparse attention: the pooled branch is not computed at all.
  Gate() = default;
  /// One number for all; 1 is the ungated sum.
  Gate(float value) : kind_(Kind::scalar), value_(value) {}  // NOLINT: reads as a literal
  /// Elementwise, [B, Sq, H, D] in the problem's dtype.
  Gate(const TensorView& tensor) : kind_(Kind::tensor), tensor_(tensor) {}  // NOLINT

  bool is_none() const { return kind_ == Kind::none; }
  bool is_scalar() const { return kind_ == Kind::scalar; }
  bool is_tensor() const { return kind_ == Kind::tensor; }
  float value() const { return value_; }
  const TensorView& tensor() const { return tensor_; }

 private:
  enum class Kind : std::uint8_t { none, scalar, tensor };
  Kind kind_ = Kind::none;
  float value_ = 0;
  TensorView tensor_;
};

/// Valid lengths known only at run time, i32: [B, columns] or [columns] (shared by the batch),
/// where columns = TileLayout::length_columns(): n_j of every packed tile, or the valid length of
/// every Plain segment. Absent: everything is valid. Values are clamped, never trusted.
struct Lengths {
  TensorView query;
  TensorView key;  ///< not taken from `query`: give both when the sequences are the same
};

}  // namespace vidsparse
