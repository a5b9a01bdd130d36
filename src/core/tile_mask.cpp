#include "vidsparse/tile_mask.hpp"

#include <algorithm>
#include <array>

#include "core/check.hpp"

namespace vidsparse {
namespace {

const std::string kBoolForm = "u8 [B, H, Nq, Nk] or [H, Nq, Nk] with a contiguous last dimension";

// A rank-3 [H, Nq, Nk] map seen as one batch entry.
template <class Tensor>
Tensor with_batch(const char* argument, Tensor map) {
  const std::size_t last = static_cast<std::size_t>(std::max(map.rank - 1, 0));
  if (map.dtype != DType::u8 || (map.rank != 3 && map.rank != 4) ||
      (map.shape[last] > 1 && map.strides[last] != 1)) {
    core::refuse(argument, kBoolForm, to_string(map));
  }
  if (map.rank == 3) {
    map.rank = 4;
    map.shape = {1, map.shape[0], map.shape[1], map.shape[2]};
    map.strides = {0, map.strides[0], map.strides[1], map.strides[2]};
  }
  return map;
}

// A tensor with elements has data; its sides are known not to be negative.
void check_data(const char* argument, const TensorView& tensor) {
  const auto end = tensor.shape.begin() + tensor.rank;
  if (tensor.data == nullptr && std::find(tensor.shape.begin(), end, 0) == end) {
    core::refuse(argument, "a pointer to " + to_string(tensor), "a null pointer");
  }
}

void check_lists(const TensorView& indices, const TensorView& counts) {
  if (indices.dtype != DType::i32 || indices.rank != 4 || indices.shape[3] < 0 ||
      (indices.shape[3] > 1 && indices.strides[3] != 1)) {
    core::refuse("indices", "i32 [B, H, Nq, M] with a contiguous last dimension",
                 to_string(indices));
  }
  const bool same = counts.rank == 3 && std::equal(counts.shape.begin(), counts.shape.begin() + 3,
                                                   indices.shape.begin());
  if (counts.dtype != DType::i32 || !same) {
    core::refuse("counts", "i32 [B, H, Nq] as indices " + to_string(indices) + " has them",
                 to_string(counts));
  }
}

// In-place transpose of a 64x64 bit matrix, block[i] bit j <-> block[j] bit i, by exchanging
// ever smaller off-diagonal squares.
void transpose_bits(std::array<std::uint64_t, 64>& block) {
  std::uint64_t keep = 0x00000000FFFFFFFFULL;
  for (unsigned side = 32; side != 0; side /= 2, keep ^= keep << side) {
    for (unsigned i = 0; i < 64; i = ((i | side) + 1) & ~side) {
      const std::uint64_t swap = ((block[i] >> side) ^ block[i | side]) & keep;
      block[i] ^= swap << side;
      block[i | side] ^= swap;
    }
  }
}

}  // namespace

std::int64_t count_set(const std::uint64_t* row, std::int64_t row_words) {
  std::int64_t count = 0;
  for (std::int64_t word = 0; word < row_words; ++word) count += std::popcount(row[word]);
  return count;
}

TileMask::TileMask(MaskShape shape) : shape_(shape) {
  if (shape.batch < 0 || shape.heads < 0 || shape.query_tiles < 0 || shape.key_tiles < 0) {
    core::refuse("mask shape", "sides >= 0", "a negative one");
  }
  // Bits of a head, all heads, all batch entries: as the strides multiply them.
  std::int64_t bits = core::checked_sum("mask shape", shape.key_tiles, 127);
  for (const std::int64_t side : {shape.query_tiles, shape.heads, shape.batch}) {
    bits = core::checked_product("mask shape", bits, side);
  }
  words_.resize(static_cast<std::size_t>(shape.words()));
}

TileMask TileMask::from_bool(const TensorView& input) {
  const TensorView map = with_batch("map", input);
  TileMask mask({map.shape[0], map.shape[1], map.shape[2], map.shape[3]});
  check_data("map", map);
  const auto* base = static_cast<const std::uint8_t*>(map.data);
  for (std::int64_t b = 0; b < map.shape[0]; ++b) {
    for (std::int64_t h = 0; h < map.shape[1]; ++h) {
      for (std::int64_t i = 0; i < map.shape[2]; ++i) {
        const std::uint8_t* from = base + map.offset(b, h, i);
        std::uint64_t* row = mask.ref().row(b, h, i);
        for (std::int64_t j = 0; j < map.shape[3]; ++j) {
          row[j / 64] |= std::uint64_t{from[j] != 0} << (j % 64);
        }
      }
    }
  }
  return mask;
}

TileMask TileMask::from_indices(const TensorView& indices, const TensorView& counts,
                                std::int64_t key_tiles) {
  check_lists(indices, counts);
  TileMask mask({indices.shape[0], indices.shape[1], indices.shape[2], key_tiles});
  check_data("indices", indices);
  check_data("counts", counts);
  const auto* lists = static_cast<const std::int32_t*>(indices.data);
  const auto* lengths = static_cast<const std::int32_t*>(counts.data);
  for (std::int64_t b = 0; b < indices.shape[0]; ++b) {
    for (std::int64_t h = 0; h < indices.shape[1]; ++h) {
      for (std::int64_t i = 0; i < indices.shape[2]; ++i) {
        const std::int32_t* list = lists + indices.offset(b, h, i);
        const std::int64_t length =
            std::clamp<std::int64_t>(lengths[counts.offset(b, h, i)], 0, indices.shape[3]);
        for (std::int64_t m = 0; m < length; ++m) {
          if (list[m] >= 0 && list[m] < key_tiles) mask.set(b, h, i, list[m]);
        }
      }
    }
  }
  return mask;
}

void TileMask::set(std::int64_t batch, std::int64_t head, std::int64_t query_tile,
                   std::int64_t key_tile) {
  ref().row(batch, head, query_tile)[key_tile / 64] |= std::uint64_t{1} << (key_tile % 64);
}

void TileMask::set_all(std::int64_t query_tile, std::int64_t key_tile) {
  for (std::int64_t b = 0; b < shape_.batch; ++b) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) set(b, h, query_tile, key_tile);
  }
}

void TileMask::to_bool(const TensorRef& output) const {
  const TensorRef map = with_batch("map", output);
  const std::array<std::int64_t, 4> sides = {shape_.batch, shape_.heads, shape_.query_tiles,
                                             shape_.key_tiles};
  if (map.shape != sides) {
    core::refuse("map", to_string(TensorView::dense(nullptr, DType::u8, 4, sides)),
                 to_string(output));
  }
  check_data("map", map);
  auto* base = static_cast<std::uint8_t*>(map.data);
  for (std::int64_t b = 0; b < shape_.batch; ++b) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (std::int64_t i = 0; i < shape_.query_tiles; ++i) {
        std::uint8_t* to = base + map.offset(b, h, i);
        for (std::int64_t j = 0; j < shape_.key_tiles; ++j) to[j] = view().test(b, h, i, j);
      }
    }
  }
}

void TileMask::to_indices(const TensorRef& indices, const TensorRef& counts) const {
  check_lists(indices, counts);
  const bool same = indices.shape[0] == shape_.batch && indices.shape[1] == shape_.heads &&
                    indices.shape[2] == shape_.query_tiles;
  if (!same) {
    core::refuse("indices",
                 "[" + std::to_string(shape_.batch) + ", " + std::to_string(shape_.heads) + ", " +
                     std::to_string(shape_.query_tiles) + ", M] i32",
                 to_string(indices));
  }
  check_data("indices", indices);
  check_data("counts", counts);
  std::int64_t longest = 0;
  for (std::int64_t row = 0; row < shape_.rows(); ++row) {
    const std::uint64_t* words = words_.data() + row * shape_.row_words();
    longest = std::max(longest, count_set(words, shape_.row_words()));
  }
  if (longest > indices.shape[3]) {
    core::refuse("indices", "room for " + std::to_string(longest) + " tiles a row",
                 to_string(indices));
  }
  auto* lists = static_cast<std::int32_t*>(indices.data);
  auto* lengths = static_cast<std::int32_t*>(counts.data);
  for (std::int64_t b = 0; b < shape_.batch; ++b) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (std::int64_t i = 0; i < shape_.query_tiles; ++i) {
        std::int32_t* list = lists + indices.offset(b, h, i);
        std::int64_t length = 0;
        for_each_set(view().row(b, h, i), shape_.row_words(),
                     [&](std::int64_t j) { list[length++] = static_cast<std::int32_t>(j); });
        lengths[counts.offset(b, h, i)] = static_cast<std::int32_t>(length);
        std::fill(list + length, list + indices.shape[3], -1);
      }
    }
  }
}

TileMask TileMask::transposed() const {
  TileMask result({shape_.batch, shape_.heads, shape_.key_tiles, shape_.query_tiles});
  transpose(view(), result.ref());
  return result;
}

void transpose(const TileMaskView& mask, const TileMaskRef& transposed) {
  const MaskShape& from = mask.shape;
  const MaskShape expected = {from.batch, from.heads, from.key_tiles, from.query_tiles};
  if (transposed.shape != expected) {
    core::refuse("transposed", "the mask's shape with query and key tiles exchanged",
                 std::to_string(transposed.shape.query_tiles) + " x " +
                     std::to_string(transposed.shape.key_tiles) + " tiles");
  }
  const std::int64_t words = transposed.shape.row_words();
  for (std::int64_t b = 0; b < from.batch; ++b) {
    for (std::int64_t h = 0; h < from.heads; ++h) {
      for (std::int64_t j0 = 0; j0 < from.key_tiles; j0 += 64) {
        const std::int64_t rows = std::min<std::int64_t>(64, from.key_tiles - j0);
        for (std::int64_t word = 0; word < words; ++word) {
          std::array<std::uint64_t, 64> block{};
          const std::int64_t i0 = word * 64;
          const std::int64_t columns = std::min<std::int64_t>(64, from.query_tiles - i0);
          for (std::int64_t i = 0; i < columns; ++i) {
            block[static_cast<std::size_t>(i)] = mask.row(b, h, i0 + i)[j0 / 64];
          }
          transpose_bits(block);
          for (std::int64_t j = 0; j < rows; ++j) {
            transposed.row(b, h, j0 + j)[word] = block[static_cast<std::size_t>(j)];
          }
        }
      }
    }
  }
}

}  // namespace vidsparse
