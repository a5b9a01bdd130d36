#include "vidsparse/tile_mask.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "vidsparse/error.hpp"

namespace vidsparse {
namespace {

class TileMaskTest : public ::testing::Test {
 protected:
  const std::uint64_t seed_ = std::random_device{}();
  std::mt19937_64 random_{seed_};
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};

  std::int64_t below(std::int64_t limit) {
    return std::uniform_int_distribution<std::int64_t>(0, limit - 1)(random_);
  }

  MaskShape random_shape() { return {1 + below(3), 1 + below(3), 1 + below(200), 1 + below(300)}; }

  // A bool map whose rows have anything between no and all bits.
  std::vector<std::uint8_t> random_map(const MaskShape& shape) {
    std::vector<std::uint8_t> map(static_cast<std::size_t>(shape.rows() * shape.key_tiles));
    for (std::int64_t row = 0; row < shape.rows(); ++row) {
      std::bernoulli_distribution chosen(static_cast<double>(below(5)) / 4);
      for (std::int64_t j = 0; j < shape.key_tiles; ++j) {
        map[static_cast<std::size_t>(row * shape.key_tiles + j)] = chosen(random_);
      }
    }
    return map;
  }

  static TensorRef tensor_of(std::vector<std::uint8_t>& map, const MaskShape& s) {
    return TensorRef::dense(map.data(), DType::u8, 4,
                            {s.batch, s.heads, s.query_tiles, s.key_tiles});
  }
};

TEST_F(TileMaskTest, RowsArePaddedToSixteenBytes) {
  EXPECT_EQ((MaskShape{1, 1, 1, 0}.row_words()), 0);
  EXPECT_EQ((MaskShape{1, 1, 1, 1}.row_words()), 2);
  EXPECT_EQ((MaskShape{1, 1, 1, 128}.row_words()), 2);
  EXPECT_EQ((MaskShape{1, 1, 1, 129}.row_words()), 4);
  EXPECT_EQ((MaskShape{1, 1, 1, 65536}.row_words()), 1024);
}

TEST_F(TileMaskTest, BoolMapsRoundTripAndTailBitsAreZero) {
  for (int round = 0; round < 20; ++round) {
    const MaskShape shape = random_shape();
    std::vector<std::uint8_t> map = random_map(shape);
    const TileMask mask = TileMask::from_bool(tensor_of(map, shape));
    std::vector<std::uint8_t> back(map.size(), 7);
    mask.to_bool(tensor_of(back, shape));
    ASSERT_EQ(back, map);
    for (std::int64_t i = 0; i < shape.query_tiles; ++i) {
      const std::uint64_t* row = mask.view().row(0, 0, i);
      std::int64_t expected = 0;
      for (std::int64_t j = 0; j < shape.key_tiles; ++j) {
        expected += map[static_cast<std::size_t>(i * shape.key_tiles + j)];
      }
      ASSERT_EQ(count_set(row, shape.row_words()), expected);
    }
  }
}

TEST_F(TileMaskTest, ListsRoundTripAscending) {
  const MaskShape shape = random_shape();
  std::vector<std::uint8_t> map = random_map(shape);
  const TileMask mask = TileMask::from_bool(tensor_of(map, shape));
  const std::int64_t width = shape.key_tiles;
  std::vector<std::int32_t> lists(static_cast<std::size_t>(shape.rows() * width), 12345);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(shape.rows()), 12345);
  const auto indices = TensorRef::dense(lists.data(), DType::i32, 4,
                                        {shape.batch, shape.heads, shape.query_tiles, width});
  const auto numbers =
      TensorRef::dense(counts.data(), DType::i32, 3, {shape.batch, shape.heads, shape.query_tiles});
  mask.to_indices(indices, numbers);
  for (std::int64_t row = 0; row < shape.rows(); ++row) {
    const std::int32_t* list = lists.data() + row * width;
    const std::int32_t count = counts[static_cast<std::size_t>(row)];
    for (std::int64_t m = 0; m < width; ++m) {
      if (m >= count) {
        ASSERT_EQ(list[m], -1);
      } else if (m > 0) {
        ASSERT_LT(list[m - 1], list[m]);
      }
    }
  }
  const TileMask back = TileMask::from_indices(indices, numbers, shape.key_tiles);
  std::vector<std::uint8_t> again(map.size());
  back.to_bool(tensor_of(again, shape));
  EXPECT_EQ(again, map);
}

TEST_F(TileMaskTest, BadListEntriesAreIgnored) {
  std::vector<std::int32_t> lists = {3, 3, -1, 99, 0, 2};
  std::vector<std::int32_t> counts = {5, -7};
  lists.insert(lists.end(), {1, 1, 1, 1, 1, 1});
  const TileMask mask =
      TileMask::from_indices(TensorRef::dense(lists.data(), DType::i32, 4, {1, 1, 2, 6}),
                             TensorRef::dense(counts.data(), DType::i32, 3, {1, 1, 2}), 4);
  EXPECT_EQ(mask.view().row(0, 0, 0)[0], 0b1001U);
  EXPECT_EQ(mask.view().row(0, 0, 1)[0], 0U);
}

TEST_F(TileMaskTest, TransposeExchangesTiles) {
  for (int round = 0; round < 20; ++round) {
    const MaskShape shape = random_shape();
    std::vector<std::uint8_t> map = random_map(shape);
    const TileMask mask = TileMask::from_bool(tensor_of(map, shape));
    const TileMask turned = mask.transposed();
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t j = 0; j < shape.key_tiles; ++j) {
          std::int64_t set = 0;
          for (std::int64_t i = 0; i < shape.query_tiles; ++i) {
            set += mask.view().test(b, h, i, j);
            ASSERT_EQ(turned.view().test(b, h, j, i), mask.view().test(b, h, i, j));
          }
          // Nothing in the tail either.
          ASSERT_EQ(count_set(turned.view().row(b, h, j), turned.shape().row_words()), set);
        }
      }
    }
  }
}

TEST_F(TileMaskTest, AlwaysSelectedTiles) {
  const TileLayout layout(Sequence{Plain{70}, Video{8, 8, 12}}, {4, 4, 4});
  ASSERT_EQ(layout.tiles(), 2 + 2 * 2 * 3);
  const TileMask own = always_own_tile(layout, layout);
  const TileMask first = always_first_frame(layout, layout);
  const TileMask window = always_window(layout, layout, 0, 1, 0);
  for (std::int64_t i = 0; i < layout.tiles(); ++i) {
    for (std::int64_t j = 0; j < layout.tiles(); ++j) {
      const Tile a = layout.tile(i);
      const Tile b = layout.tile(j);
      EXPECT_EQ(own.view().test(0, 0, i, j), i == j);
      EXPECT_EQ(first.view().test(0, 0, i, j), !b.plain && b.origin[0] == 0);
      EXPECT_EQ(window.view().test(0, 0, i, j),
                !a.plain && !b.plain && a.origin[0] == b.origin[0] && a.origin[2] == b.origin[2]);
    }
  }
  EXPECT_TRUE(own.view().broadcast(3, 5).test(2, 4, 1, 1));
  // A window may be wider than any video.
  const TileMask all = always_window(layout, layout, INT64_MAX, INT64_MAX, INT64_MAX);
  for (std::int64_t i = 0; i < layout.tiles(); ++i) {
    for (std::int64_t j = 0; j < layout.tiles(); ++j) {
      EXPECT_EQ(all.view().test(0, 0, i, j), !layout.is_plain(i) && !layout.is_plain(j));
    }
  }
}

TEST_F(TileMaskTest, RefusesOtherForms) {
  std::vector<float> floats(64);
  EXPECT_THROW(TileMask::from_bool(TensorRef::dense(floats.data(), DType::f32, 4, {1, 1, 8, 8})),
               Error);
  std::vector<std::int32_t> lists(4);
  std::vector<std::int32_t> counts(2);
  EXPECT_THROW(TileMask::from_indices(TensorRef::dense(lists.data(), DType::i32, 4, {1, 1, 2, 2}),
                                      TensorRef::dense(counts.data(), DType::i32, 3, {1, 2, 1}), 4),
               Error);
}

TEST_F(TileMaskTest, RefusesSizesThatOverflow) {
  constexpr std::int64_t kMost = INT64_MAX;
  constexpr std::int64_t kHalf = std::int64_t{1} << 32;
  for (const MaskShape& shape :
       {MaskShape{1, 1, 1, kMost}, MaskShape{kHalf, kHalf, 1, 1}, MaskShape{0, 1, kHalf, kHalf},
        MaskShape{1, kMost, 2, 128}, MaskShape{kMost, 1, 1, 1}, MaskShape{1, 1, 1, -1}}) {
    EXPECT_THROW(TileMask{shape}, Error);
  }
  std::vector<std::int32_t> lists(2);
  std::vector<std::int32_t> counts(2);
  const auto numbers = TensorRef::dense(counts.data(), DType::i32, 3, {1, 1, 2});
  EXPECT_THROW(TileMask::from_indices(TensorRef::dense(lists.data(), DType::i32, 4, {1, 1, 2, 1}),
                                      numbers, kMost),
               Error);
  EXPECT_THROW(TileMask::from_indices(TensorRef::dense(lists.data(), DType::i32, 4, {1, 1, 2, -1}),
                                      numbers, 4),
               Error);
}

}  // namespace
}  // namespace vidsparse
