#pragma once

#include <cstdint>

#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_layout.hpp"

namespace vidsparse::reference {

/// The query or the key side of a call: its tiles and, at run time, their valid tokens.
class Side {
 public:
  Side(const TileLayout& layout, const TensorView& lengths) : layout_(layout), lengths_(lengths) {}

  const TileLayout& layout() const { return layout_; }
  std::int64_t tiles() const { return layout_.tiles(); }

  /// n_j.
  std::int64_t valid(std::int64_t batch, std::int64_t index) const {
    return layout_.valid(layout_.tile(index), index, lengths_of(batch));
  }

  /// Calls visit(token) for the valid tokens of a tile in slot order.
  template <class Visit>
  void for_each_token(std::int64_t batch, std::int64_t index, Visit&& visit) const {
    const Tile tile = layout_.tile(index);
    const std::int64_t count = layout_.valid(tile, index, lengths_of(batch));
    tile.for_each_run(count, [&](std::int64_t first, std::int64_t run, std::int64_t) {
      for (std::int64_t token = first; token < first + run; ++token) visit(token);
    });
  }

 private:
  /// This batch entry's row of run-time lengths, or null. One row may serve all.
  const std::int32_t* lengths_of(std::int64_t batch) const {
    if (!lengths_) return nullptr;
    const auto* data = static_cast<const std::int32_t*>(lengths_.data);
    return lengths_.rank == 1 ? data : data + batch * lengths_.strides[0];
  }

  const TileLayout& layout_;
  TensorView lengths_;
};

}  // namespace vidsparse::reference
