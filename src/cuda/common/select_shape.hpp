#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace vidsparse::cuda {

/// How many query tiles of one head a thread block of select takes, and by how many threads.
struct SelectBlock {
  int rows = 0;
  int threads = 0;
  friend bool operator==(const SelectBlock&, const SelectBlock&) = default;
};

/// What select's shape depends on.
struct SelectSize {
  int head_dim;
  std::int64_t heads;  ///< query heads of all batch entries
  int query_tiles;
  int key_tiles;
  int multiprocessors;
  int shared_bytes;  ///< of a multiprocessor that one thread block can have
};

/// How a problem's select runs.
struct SelectShape {
  SelectBlock block;
  bool on_chip = true;      ///< score rows; else in workspace, of which each block needs some
  std::int64_t strips = 0;  ///< of block.rows query tiles, a head
  std::int64_t items = 0;   ///< strips of all heads
  std::int64_t blocks = 0;  ///< in the grid
  std::size_t shared_bytes = 0;
  std::int64_t scratch_words = 0;
  int row_words = 0;  ///< of a bitmap's row, 32 bits each
};

/// The shape with a given block; none if its rows do not fit where they must.
std::optional<SelectShape> select_shape(const SelectSize& size, SelectBlock block);

/// The time that a shape is expected to take, in ns on an H200, launches apart: only ratios matter.
double select_cost(const SelectSize& size, const SelectShape& shape);

/// The shape of least cost. VIDSPARSE_SELECT_BLOCK (ROWSxTHREADS) says otherwise, for tests.
SelectShape choose_select_shape(const SelectSize& size);

}  // namespace vidsparse::cuda
