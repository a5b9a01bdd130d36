#include "vidsparse/tile_layout.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "vidsparse/error.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse {
namespace {

std::int64_t below(std::mt19937_64& random, std::int64_t limit) {
  return std::uniform_int_distribution<std::int64_t>(0, limit - 1)(random);
}

TEST(TileLayout, EveryTokenLiesInExactlyOneTileAtItsSlot) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<TileShape> shapes = {{4, 4, 4}, {3, 8, 8}, {2, 8, 4}, {1, 8, 8}, {4, 4, 12}};
  for (int round = 0; round < 200; ++round) {
    const TileShape box = shapes[static_cast<std::size_t>(below(random, 5))];
    const Video video = {below(random, 9), below(random, 14), below(random, 18)};
    const Plain before = {below(random, 200)};
    const Plain after = {below(random, 80)};
    const TileLayout layout(Sequence{before, video, after}, box);
    ASSERT_EQ(layout.tokens(), before.length + video.t * video.h * video.w + after.length);

    std::vector<int> seen(static_cast<std::size_t>(layout.tokens()));
    std::int64_t plain_tiles = 0;
    for (std::int64_t j = 0; j < layout.tiles(); ++j) {
      const Tile tile = layout.tile(j);
      ASSERT_EQ(tile.plain, layout.is_plain(j));
      plain_tiles += tile.plain;
      std::int64_t slots = 0;
      tile.for_each_run(tile.capacity(),
                        [&](std::int64_t first, std::int64_t count, std::int64_t slot) {
                          ASSERT_EQ(slot, slots);
                          slots += count;
                          for (std::int64_t i = 0; i < count; ++i)
                            ++seen.at(static_cast<std::size_t>(first + i));
                        });
      ASSERT_EQ(slots, layout.valid(tile, j, nullptr));
      ASSERT_GT(slots, 0);
      ASSERT_LE(slots, box.tokens());
      if (!tile.plain) {
        ASSERT_EQ(layout.tile_at(1, tile.origin[0], tile.origin[1], tile.origin[2]), j);
      }
    }
    for (const int count : seen) ASSERT_EQ(count, 1);
    ASSERT_EQ(layout.plain_tiles(), plain_tiles);
    ASSERT_EQ(layout.video_tiles(), layout.tiles() - plain_tiles);
  }
}

TEST(TileLayout, SlotsOfARaggedTileAreCompacted) {
  const Video video = {5, 6, 7};
  const TileLayout layout(Sequence{video}, {4, 4, 4});
  for (std::int64_t j = 0; j < layout.tiles(); ++j) {
    const Tile tile = layout.tile(j);
    tile.for_each_run(
        tile.capacity(), [&](std::int64_t first, std::int64_t count, std::int64_t slot) {
          for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t w = (first + i) % 7;
            const std::int64_t h = (first + i) / 7 % 6;
            const std::int64_t t = (first + i) / 42;
            EXPECT_EQ(slot + i, ((t % 4) * tile.extent[1] + h % 4) * tile.extent[2] + w % 4);
          }
        });
  }
}

TEST(TileLayout, CountsOfTheModelsTable) {
  struct Row {
    Video grid;
    std::int64_t tokens;
    std::int64_t tiles;
    double waste;
  };
  const std::vector<Row> rows = {{{21, 30, 52}, 32760, 624, 39936.0 / 32760 - 1},
                                 {{20, 28, 52}, 29120, 455, 0},
                                 {{20, 32, 52}, 33280, 520, 0},
                                 {{21, 45, 80}, 75600, 1440, 92160.0 / 75600 - 1},
                                 {{33, 45, 80}, 118800, 2160, 138240.0 / 118800 - 1},
                                 {{32, 48, 80}, 122880, 1920, 0},
                                 {{31, 22, 40}, 27280, 480, 30720.0 / 27280 - 1},
                                 {{16, 34, 60}, 32640, 540, 34560.0 / 32640 - 1},
                                 {{37, 24, 42}, 37296, 660, 42240.0 / 37296 - 1}};
  for (const Row& row : rows) {
    const TileLayout layout(Sequence{row.grid}, {4, 4, 4});
    EXPECT_EQ(layout.tokens(), row.tokens);
    EXPECT_EQ(layout.tiles(), row.tiles);
    EXPECT_NEAR(layout.padding_waste(), row.waste, 1e-12);
  }
}

TEST(TileLayout, RunTimeLengthsAreClamped) {
  const TileLayout segments(Sequence{Plain{150}, Video{4, 4, 4}, Plain{10}}, {4, 4, 4});
  const std::vector<std::int32_t> lengths = {70, 99};
  const auto valid = [&](std::int64_t j) {
    return segments.valid(segments.tile(j), j, lengths.data());
  };
  EXPECT_EQ(valid(0), 64);
  EXPECT_EQ(valid(1), 6);
  EXPECT_EQ(valid(2), 0);
  EXPECT_EQ(valid(3), 64);
  EXPECT_EQ(valid(4), 10);

  const TileLayout packed(Packed{3, 64}, {4, 4, 4});
  const std::vector<std::int32_t> sizes = {-5, 17, 1000};
  EXPECT_EQ(packed.valid(packed.tile(0), 0, sizes.data()), 0);
  EXPECT_EQ(packed.valid(packed.tile(1), 1, sizes.data()), 17);
  EXPECT_EQ(packed.valid(packed.tile(2), 2, sizes.data()), 64);
}

TEST(TileLayout, RefusesWhatCannotBe) {
  const auto argument_of = [](Sequence sequence, TileShape tile) -> std::string {
    try {
      TileLayout(std::move(sequence), tile);
    } catch (const Error& error) {
      return error.argument();
    }
    return "accepted";
  };
  EXPECT_EQ(argument_of(Sequence{Video{4, 4, 4}}, {4, 4, 5}), "tile");
  EXPECT_EQ(argument_of(Sequence{Video{4, 4, 4}}, {0, 8, 8}), "tile");
  EXPECT_EQ(argument_of(Sequence{Video{4, 4, 4}}, {INT64_MAX, 64, 64}), "tile");
  EXPECT_EQ(argument_of(Sequence{Video{-1, 4, 4}}, {4, 4, 4}), "sequence");
  EXPECT_EQ(argument_of(Sequence{Plain{-1}}, {4, 4, 4}), "sequence");
  EXPECT_EQ(argument_of(Sequence{Video{1LL << 30, 1LL << 30, 1LL << 30}}, {4, 4, 4}), "sequence");
  EXPECT_EQ(argument_of(Packed{4, 128}, {4, 4, 4}), "sequence");
  EXPECT_EQ(argument_of(Packed{-4, 64}, {4, 4, 4}), "sequence");
  EXPECT_EQ(argument_of(Sequence{}, {4, 4, 4}), "accepted");
}

TEST(TileLayout, RefusesTilesItDoesNotHave) {
  const TileLayout segments(Sequence{Plain{70}, Video{8, 8, 8}}, {4, 4, 4});
  const TileLayout packed(Packed{3, 64}, {4, 4, 4});
  for (const TileLayout* layout : {&segments, &packed}) {
    EXPECT_THROW(layout->tile(-1), Error);
    EXPECT_THROW(layout->tile(layout->tiles()), Error);
    EXPECT_THROW(layout->tile_at(2, 0, 0, 0), Error);
    EXPECT_THROW(layout->tile_at(-1, 0, 0, 0), Error);
  }
}

TEST(TopK, FollowsTheFormula) {
  EXPECT_EQ(top_k_of(0.8, 624), 125);
  EXPECT_EQ(top_k_of(0.9, 624), 63);
  EXPECT_EQ(top_k_of(0.9, 1440), 144);
  EXPECT_EQ(top_k_of(0.7, 10), 4);
  EXPECT_EQ(top_k_of(0.0, 10), 10);
  EXPECT_EQ(top_k_of(0.999, 10), 1);
  EXPECT_EQ(top_k_of(0.5, 0), 0);
  // As doubles these lie at 2^63, which no integer holds.
  EXPECT_EQ(top_k_of(0.0, INT64_MAX), INT64_MAX);
  EXPECT_EQ(top_k_of(1e-17, INT64_MAX - 1), INT64_MAX - 1);
  EXPECT_THROW(top_k_of(1.0, 10), Error);
  EXPECT_THROW(top_k_of(-0.1, 10), Error);
  EXPECT_THROW(top_k_of(std::nan(""), 10), Error);
}

}  // namespace
}  // namespace vidsparse
