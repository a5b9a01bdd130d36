#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/backend.hpp"
#include "cpu/kernels.hpp"

namespace vidsparse::cpu {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Valid tokens of every tile of one side, per batch entry.
struct Counts {
  const std::int32_t* data = nullptr;
  std::int64_t batch_stride = 0;

  const std::int32_t* row(std::int64_t batch) const { return data + batch * batch_stride; }
};

/// The query or the key side of a problem: its tiles, and where their fragments lie in packs. A
/// tile's valid tokens are compacted and cut in fragments of 64; in packs, fragment f of tile j
/// starts at slot `slots[j] + 64 * f`, and the last one's width is rounded up to `multiple` only.
class Side {
 public:
  Side(const TileLayout& layout, int multiple);

  const TileLayout& layout() const { return *layout_; }
  std::int64_t tiles() const { return layout_->tiles(); }
  int multiple() const { return multiple_; }
  std::int64_t slot(std::int64_t tile) const { return slots_[static_cast<std::size_t>(tile)]; }
  /// Slots of a head's pack.
  std::int64_t slots() const { return slots_.back(); }

  /// Words of workspace `counts` needs.
  std::int64_t count_words(std::int64_t batch, const TensorView& lengths) const {
    return lengths ? batch * tiles() : 0;
  }
  /// `workspace` holds count_words() integers.
  Counts counts(std::int64_t batch, const TensorView& lengths, std::int32_t* workspace) const;

  /// The first `count` tokens of a tile in slot order.
  void gather(std::int64_t tile, std::int64_t count, std::int64_t* tokens) const;
  /// Tokens of a tile when nothing is cut off at run time.
  std::int64_t capacity(std::int64_t tile) const {
    return capacity_[static_cast<std::size_t>(tile)];
  }

 private:
  const TileLayout* layout_;
  int multiple_;
  std::vector<std::int32_t> capacity_;  // [tiles]
  std::vector<std::int64_t> slots_;     // [tiles + 1]
};

/// What every stage needs to know of a plan.
struct Context {
  const core::Setting* setting;
  const Kernels* kernels;
  Side query;
  Side key;

  Context(const core::Setting& plan, const Kernels& table);

  DType dtype() const { return setting->problem.dtype; }
  std::size_t element() const { return size_of(dtype()); }
  std::int64_t batch() const { return setting->problem.batch; }
  std::int64_t heads() const { return setting->problem.heads_q; }
  std::int64_t key_heads() const { return setting->problem.key_heads(); }
  /// Query heads that share a key head.
  std::int64_t group() const { return heads() / key_heads(); }
  int head_dim() const { return static_cast<int>(setting->problem.head_dim); }
  std::int64_t slots_of_tile() const { return setting->problem.tile.tokens(); }

  /// Products of two bf16, else everything is fp32 by the time it is multiplied.
  bool dot_bf16() const { return dtype() == DType::bf16 && kernels->product_bf16 != nullptr; }
  /// 16-bit operands are packed as such and expanded before use.
  bool expands() const { return dtype() != DType::f32 && !dot_bf16(); }
  /// Words of a packed row: head_dim elements, zero-padded to the product's depth granularity.
  int row_words() const;
  double scale(const std::optional<double>& given) const;

  /// Asks for the rows of a tile's first `count` tokens, at most a fragment of them, in the
  /// second-level cache. A token's row is far from the next one's: the hardware does not foresee
  /// it.
  void prefetch(const Side& side, std::int64_t tile, std::int64_t count, std::int64_t batch,
                std::int64_t head, std::initializer_list<TensorView> tensors) const;
};

/// Rows of one head of a [B, S, H, D] tensor.
template <class Pointer>
class HeadRows {
 public:
  HeadRows() = default;
  HeadRows(const BasicTensor<Pointer>& tensor, std::int64_t batch, std::int64_t head)
      : stride_(tensor.strides[1] * static_cast<std::int64_t>(size_of(tensor.dtype))) {
    const std::int64_t offset = tensor.offset(batch, 0, head);
    base_ =
        static_cast<Byte*>(tensor.data) + offset * static_cast<std::int64_t>(size_of(tensor.dtype));
  }
  Pointer operator[](std::int64_t token) const { return base_ + token * stride_; }
  void collect(const std::int64_t* tokens, std::int64_t count, Pointer* rows) const {
    for (std::int64_t i = 0; i < count; ++i) rows[i] = (*this)[tokens[i]];
  }

 private:
  using Byte = std::conditional_t<std::is_same_v<Pointer, void*>, char, const char>;
  Byte* base_ = nullptr;
  std::int64_t stride_ = 0;
};

/// A row of zeros of any dtype: stands for a query that gives no gradient, whose own row may hold
/// infinities.
alignas(64) inline constexpr float kZeroRow[kMaxHeadDim] = {};

/// B operand of fp32 rows in panels of 64 columns: [columns / 64][depth][width]; rows from `count`
/// to `depth` are zero, as are null ones.
void pack_rows_f32(const void* const* rows, int count, int columns, float* out, int depth);

}  // namespace vidsparse::cpu
