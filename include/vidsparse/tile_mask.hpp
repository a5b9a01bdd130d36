#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "vidsparse/export.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_layout.hpp"

namespace vidsparse {

/// Sizes of a tile bitmap: one row per (batch, head, query tile), one bit per key tile.
struct MaskShape {
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t query_tiles = 0;
  std::int64_t key_tiles = 0;

  /// 64-bit words of a row: enough for key_tiles bits, rounded up to 16 bytes.
  constexpr std::int64_t row_words() const { return (key_tiles + 127) / 128 * 2; }
  constexpr std::int64_t rows() const { return batch * heads * query_tiles; }
  constexpr std::int64_t words() const { return rows() * row_words(); }
  bool operator==(const MaskShape&) const = default;
};

/// A non-owning bitmap: bit j%64 of little-endian word j/64 of a row is key tile j; tail bits are
/// zero. Rows of a head follow one another; heads and batch entries lie `head_stride` and
/// `batch_stride` words apart, 0 where they share one mask.
template <class Word>
struct BasicMask {
  Word* words = nullptr;
  MaskShape shape;
  std::int64_t head_stride = 0;
  std::int64_t batch_stride = 0;

  constexpr BasicMask() = default;
  /// Dense: query tile fastest, then head, then batch.
  constexpr BasicMask(Word* data, MaskShape sizes)
      : words(data),
        shape(sizes),
        head_stride(sizes.query_tiles * sizes.row_words()),
        batch_stride(sizes.heads * head_stride) {}
  template <class Other>
  constexpr BasicMask(const BasicMask<Other>& other)  // NOLINT: implicit like T* to const T*
      : words(other.words),
        shape(other.shape),
        head_stride(other.head_stride),
        batch_stride(other.batch_stride) {}

  /// The same words seen as `batch` x `heads`: a side of 1 is shared by all.
  constexpr BasicMask broadcast(std::int64_t batch, std::int64_t heads) const {
    BasicMask wide = *this;
    if (shape.batch == 1) wide.batch_stride = 0;
    if (shape.heads == 1) wide.head_stride = 0;
    wide.shape.batch = batch;
    wide.shape.heads = heads;
    return wide;
  }

  constexpr explicit operator bool() const { return words != nullptr; }

  constexpr Word* row(std::int64_t batch, std::int64_t head, std::int64_t query_tile) const {
    return words + batch * batch_stride + head * head_stride + query_tile * shape.row_words();
  }
  constexpr bool test(std::int64_t batch, std::int64_t head, std::int64_t query_tile,
                      std::int64_t key_tile) const {
    return (row(batch, head, query_tile)[key_tile / 64] >> (key_tile % 64)) & 1U;
  }
};

using TileMaskView = BasicMask<const std::uint64_t>;
using TileMaskRef = BasicMask<std::uint64_t>;

/// Calls visit(key_tile) for every set bit of a row, ascending.
template <class Visit>
void for_each_set(const std::uint64_t* row, std::int64_t row_words, Visit&& visit) {
  for (std::int64_t word = 0; word < row_words; ++word) {
    for (std::uint64_t bits = row[word]; bits != 0; bits &= bits - 1) {
      visit(word * 64 + std::countr_zero(bits));
    }
  }
}

/// Set bits of a row.
VIDSPARSE_API std::int64_t count_set(const std::uint64_t* row, std::int64_t row_words);

/// A bitmap that owns its words, with conversions from and to the other forms masks come in, and
/// the builders of always-selected tiles. Host memory only.
class VIDSPARSE_API TileMask {
 public:
  TileMask() = default;
  /// All zero. Throws Error where a side is negative or the bits are 2^63 and more.
  explicit TileMask(MaskShape shape);

  /// `map`: u8, [B, H, Nq, Nk] or [H, Nq, Nk] (then one batch entry), any strides but the last;
  /// non-zero selects.
  static TileMask from_bool(const TensorView& map);

  /// `indices` i32 [B, H, Nq, M], `counts` i32 [B, H, Nq]: the first counts entries of a list
  /// count; counts are clamped to [0, M], out-of-range indices ignored, duplicates count once.
  static TileMask from_indices(const TensorView& indices, const TensorView& counts,
                               std::int64_t key_tiles);

  const MaskShape& shape() const { return shape_; }
  TileMaskView view() const { return {words_.data(), shape_}; }
  TileMaskRef ref() { return {words_.data(), shape_}; }

  void set(std::int64_t batch, std::int64_t head, std::int64_t query_tile, std::int64_t key_tile);
  /// Selects a key tile for a query tile in every batch entry and head.
  void set_all(std::int64_t query_tile, std::int64_t key_tile);

  /// u8 [B, H, Nq, Nk], written whole.
  void to_bool(const TensorRef& map) const;
  /// `indices` i32 [B, H, Nq, M] ascending, unused entries -1; `counts` i32 [B, H, Nq]. Throws when
  /// a row has more than M.
  void to_indices(const TensorRef& indices, const TensorRef& counts) const;

  /// Key-major: row per (batch, head, key tile), bit per query tile.
  TileMask transposed() const;

 private:
  MaskShape shape_;
  std::vector<std::uint64_t> words_;
};

/// Key-major copy of `mask` into `transposed` (shape with query and key tiles exchanged), written
/// whole: 64x64 bit blocks, no lists.
VIDSPARSE_API void transpose(const TileMaskView& mask, const TileMaskRef& transposed);

/// Builders of always-selected tiles (`Selection::always`), for one batch entry and head: pass
/// `.view().broadcast(batch, heads)`.
/// Each query tile's own tile, where query and key sequences are the same.
VIDSPARSE_API TileMask always_own_tile(const TileLayout& query, const TileLayout& key);
/// The tiles of the first tile row in time of every key video.
VIDSPARSE_API TileMask always_first_frame(const TileLayout& query, const TileLayout& key);
/// Key video tiles within the given distances, in tiles, of the query tile's place (same segment).
VIDSPARSE_API TileMask always_window(const TileLayout& query, const TileLayout& key,
                                     std::int64_t dt, std::int64_t dh, std::int64_t dw);

}  // namespace vidsparse
