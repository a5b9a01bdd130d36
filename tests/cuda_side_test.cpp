// What kernels know of tiles, on the host: the same functions run on the device.

#include "cuda/common/side.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "cuda/common/edge_box.cuh"
#include "cuda/sm80/blocks.hpp"

namespace vidsparse::cuda {
namespace {

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }

 private:
  std::mt19937_64 engine_;
};

TEST(CudaSide, DividerIsExact) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Dice dice(seed);
  for (int round = 0; round < 20000; ++round) {
    const std::int64_t by = dice.between(1, std::int64_t{1} << dice.between(0, 31)) & INT32_MAX;
    if (by == 0) continue;
    const Divider divider(static_cast<std::uint32_t>(by));
    const std::int64_t n = dice.between(0, INT32_MAX);
    for (const std::int64_t value : {n, n / by * by, n / by * by - 1, std::int64_t{INT32_MAX}}) {
      if (value < 0) continue;
      ASSERT_EQ(divider.quotient(static_cast<std::int32_t>(value)), value / by)
          << value << " / " << by;
    }
  }
}

Sequence random_sequence(Dice& dice, const TileShape& tile) {
  if (dice.between(0, 3) == 0) return Packed{dice.between(0, 9), tile.tokens()};
  std::vector<Segment> segments;
  for (std::int64_t n = dice.between(0, 5); n > 0; --n) {
    if (dice.between(0, 1) == 0) {
      segments.push_back(Plain{dice.between(0, 300)});
    } else {
      segments.push_back(Video{dice.between(0, 9), dice.between(1, 20), dice.between(1, 30)});
    }
  }
  return Sequence(segments);
}

TEST(CudaSide, FragmentsHoldTheTokensOfTheirTile) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Dice dice(seed);
  const std::vector<TileShape> shapes = {{4, 4, 4}, {3, 8, 8}, {2, 8, 4},  {1, 8, 8}, {4, 4, 12},
                                         {6, 8, 8}, {5, 8, 8}, {1, 1, 64}, {8, 8, 8}, {32, 2, 3}};
  for (int round = 0; round < 300; ++round) {
    const TileShape tile = shapes[static_cast<std::size_t>(
        dice.between(0, static_cast<std::int64_t>(shapes.size()) - 1))];
    const TileLayout layout(random_sequence(dice, tile), tile);
    ASSERT_TRUE(can_describe("query", layout).ok);
    const std::int64_t batch = dice.between(1, 3);
    const std::int64_t columns = layout.length_columns();
    std::vector<std::int32_t> lengths(static_cast<std::size_t>(batch * columns));
    for (std::int32_t& length : lengths) {
      length = static_cast<std::int32_t>(dice.between(-3, 300));
      if (dice.between(0, 9) == 0) length = dice.between(0, 1) == 0 ? INT32_MIN : INT32_MAX;
    }
    const bool limited = columns > 0 && dice.between(0, 1) == 0;
    Side side = make_side(layout);
    if (limited) {
      side = with_lengths(side, TensorView::dense(lengths.data(), DType::i32, 2, {batch, columns}));
    }
    ASSERT_EQ(side.tiles, layout.tiles());
    ASSERT_EQ(side.tokens, layout.tokens());
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int32_t j = 0; j < side.tiles; ++j) {
        const Tile expected = layout.tile(j);
        const std::int64_t valid =
            layout.valid(expected, j, limited ? lengths.data() + b * columns : nullptr);
        std::vector<std::int64_t> tokens;
        expected.for_each_run(valid, [&](std::int64_t first, std::int64_t run, std::int64_t) {
          for (std::int64_t i = 0; i < run; ++i) tokens.push_back(first + i);
        });
        std::vector<std::int64_t> got;
        for (std::int32_t f = 0; f < side.fragments_per_tile; ++f) {
          const Fragment fragment = side.fragment(static_cast<std::int32_t>(b), j, f);
          int count = 0;
          for (std::int32_t slot = 0; slot < kFragment; ++slot) {
            const std::int32_t token = fragment.token(slot);
            ASSERT_EQ((fragment.valid_slots() >> slot) & 1U, token >= 0);
            if (token < 0) continue;
            got.push_back(token);
            ++count;
          }
          ASSERT_EQ(count, fragment.count());
          const Raster& segment = side.segments[fragment.segment];
          ASSERT_EQ(fragment.first_token,
                    segment.first_token +
                        (fragment.origin.t * segment.grid.h + fragment.origin.h) * segment.grid.w +
                        fragment.origin.w);
        }
        // Lines keep the order of memory; the order inside a video's tile is the kernels' own.
        if (expected.stride_h != 0 && !expected.plain) std::sort(got.begin(), got.end());
        if (expected.stride_h != 0 && !expected.plain) std::sort(tokens.begin(), tokens.end());
        ASSERT_EQ(got, tokens) << layout.sequence().to_string() << " tile " << j;
        ASSERT_EQ(side.valid_tokens(static_cast<std::int32_t>(b), j), valid);
        ASSERT_EQ(side.is_plain(j), layout.is_plain(j));
      }
    }
    // Text before and behind all videos comes first, then the others, as they lie.
    std::int32_t first = 0;
    std::int32_t end = side.tiles;
    while (first < end && layout.is_plain(first)) ++first;
    while (first < end && layout.is_plain(end - 1)) --end;
    if (first == end) first = 0, end = side.tiles;
    std::vector<std::int32_t> order;
    for (const bool text : {true, false}) {
      for (std::int32_t j = 0; j < side.tiles; ++j) {
        if ((j < first || j >= end) != text) continue;
        for (std::int32_t f = 0; f < side.fragments_per_tile; ++f) {
          order.push_back(j * side.fragments_per_tile + f);
        }
      }
    }
    const TextFirst turns = side.text_first();
    ASSERT_EQ(turns.fragments(), side.fragments());
    for (std::int32_t turn = 0; turn < turns.fragments(); ++turn) {
      ASSERT_EQ(turns.fragment(turn), order[static_cast<std::size_t>(turn)])
          << layout.sequence().to_string() << ", turn " << turn;
    }
  }
}

/// The tokens of a fragment, in the order of an edge box's slots.
std::vector<std::int32_t> tokens_in(const EdgeBox& box, const Fragment& fragment) {
  std::vector<std::int32_t> tokens;
  const Triple sides = box.sides();
  for (std::int32_t t = 0; t < sides.t; ++t) {
    for (std::int32_t h = 0; h < sides.h; ++h) {
      for (std::int32_t w = 0; w < sides.w; ++w) {
        const Triple& extent = fragment.extent;
        const bool valid = t < extent.t && h < extent.h && w < extent.w;
        tokens.push_back(
            valid ? fragment.first_token + t * fragment.stride_t + h * fragment.stride_h + w : -1);
      }
    }
  }
  return tokens;
}

TEST(CudaSide, EdgeBoxesHoldAllTokensOfTheirFragments) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Dice dice(seed);
  const std::vector<TileShape> shapes = {{4, 4, 4}, {3, 8, 8}, {2, 8, 4}, {1, 8, 8}, {1, 1, 64}};
  int held = 0;
  for (int round = 0; round < 300; ++round) {
    const TileShape tile = shapes[static_cast<std::size_t>(dice.between(0, 4))];
    const TileLayout layout(random_sequence(dice, tile), tile);
    const std::int64_t columns = layout.length_columns();
    std::vector<std::int32_t> lengths(static_cast<std::size_t>(columns));
    for (std::int32_t& length : lengths) length = static_cast<std::int32_t>(dice.between(-3, 300));
    const bool limited = columns > 0 && dice.between(0, 1) == 0;
    Side side = make_side(layout);
    if (limited) {
      side = with_lengths(side, TensorView::dense(lengths.data(), DType::i32, 2, {1, columns}));
    }
    const EdgeBoxes edges = make_edge_boxes(side, limited);
    for (std::int32_t i = 0; i < edges.count; ++i) {
      ASSERT_TRUE(edges.boxes[i].units() == 1 || edges.boxes[i].units() == 2);
      ASSERT_GE(edges.boxes[i].units(), edges.boxes[0].units());
      ASSERT_EQ(edges.boxes[i].sides().t * edges.boxes[i].sides().h * edges.boxes[i].sides().w,
                edges.boxes[i].units() * EdgeBox::kUnit);
    }
    for (std::int32_t j = 0; j < side.tiles; ++j) {
      for (std::int32_t f = 0; f < side.fragments_per_tile; ++f) {
        const Fragment fragment = side.fragment(0, j, f);
        if (fragment.count() == 0) continue;
        const std::int32_t found = edges.find(fragment);
        if (found < 0) continue;
        ++held;
        const EdgeBox& box = edges.boxes[found];
        const std::vector<std::int32_t> tokens = tokens_in(box, fragment);
        std::vector<std::int32_t> valid;
        const Fragment ordered = edges.ordered(fragment);
        for (std::int32_t slot = 0; slot < kFragment; ++slot) {
          const bool there = (ordered.valid_slots() >> slot & 1) != 0;
          ASSERT_EQ(ordered.token(slot) >= 0, there);
          if (!there) continue;
          ASSERT_LT(slot, box.units() * EdgeBox::kUnit);
          ASSERT_EQ(ordered.token(slot), tokens[static_cast<std::size_t>(slot)]);
          valid.push_back(ordered.token(slot));
        }
        std::vector<std::int32_t> expected;
        for (std::int32_t slot = 0; slot < kFragment; ++slot) {
          if (fragment.token(slot) >= 0) expected.push_back(fragment.token(slot));
        }
        ASSERT_EQ(valid, expected) << layout.sequence().to_string() << " tile " << j;
      }
    }
  }
  EXPECT_GT(held, 0);
}

TEST(CudaSide, EdgeBoxesOfAVideo) {
  const EdgeBoxes edges =
      make_edge_boxes(make_side(TileLayout(Sequence{Video{21, 46, 80}}, {4, 4, 4})), false);
  ASSERT_EQ(edges.count, 2);
  EXPECT_EQ(edges.boxes[0].units(), 1);  // one frame of four
  EXPECT_EQ(edges.boxes[0].log_t, 0);
  EXPECT_EQ(edges.boxes[1].units(), 2);  // two rows of four
  EXPECT_EQ(edges.boxes[1].log_h, 1);
  EXPECT_EQ(
      make_edge_boxes(make_side(TileLayout(Sequence{Video{20, 32, 51}}, {4, 4, 4})), false).count,
      0);
}

TEST(CudaSide, RefusesWhatItCannotDescribe) {
  std::vector<Segment> segments(12, Plain{10});
  segments[3] = segments[5] = segments[6] = segments[7] = Plain{0};
  EXPECT_TRUE(can_describe("key", TileLayout(Sequence(segments), {4, 4, 4})).ok);
  segments[3] = Plain{1};
  EXPECT_EQ(can_describe("key", TileLayout(Sequence(segments), {4, 4, 4})).reason,
            "key: expected at most 8 segments with tokens, got 9");
  EXPECT_EQ(can_describe("query", TileLayout(Sequence{Video{512, 2048, 2048}}, {4, 4, 4})).reason,
            "query: expected fewer than 2^31 slots, got 2147483648");
}

/// Blocks in the order in which a launch begins them: every fragment of every head once, all text
/// before anything else.
TEST(CudaSide, BlocksOfSm80HaveEveryFragmentOnceAndTextFirst) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Dice dice(seed);
  for (int round = 0; round < 300; ++round) {
    TextFirst order;
    if (dice.between(0, 3) > 0) order.front = static_cast<std::int32_t>(dice.between(0, 40));
    if (dice.between(0, 3) > 0) order.back = static_cast<std::int32_t>(dice.between(0, 40));
    order.video = static_cast<std::int32_t>(dice.between(1, 60));
    // With this many heads text has no rows of its own.
    const bool many = round % 100 == 99;
    const std::int64_t heads = many ? 65000 : dice.between(1, 9);
    if (many) order = {40, 1, 0};
    const sm80::ItemBlocks blocks(order, heads);
    const auto grid = blocks.grid(2);
    ASSERT_LE(grid.y, 65535U);
    ASSERT_EQ(grid.z, 2U);
    std::vector<bool> met(static_cast<std::size_t>(heads * order.fragments()));
    std::int64_t count = 0;
    bool text_done = false;
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        const auto at = blocks.at(static_cast<std::int32_t>(x), static_cast<std::int32_t>(y));
        if (at.head >= heads) continue;
        ASSERT_TRUE(at.head >= 0 && at.fragment >= 0 && at.fragment < order.fragments());
        const bool is_text = at.fragment < order.front || at.fragment >= order.front + order.video;
        ASSERT_FALSE(is_text && text_done && !many);
        text_done |= !is_text;
        const auto place = static_cast<std::size_t>(at.head * order.fragments() + at.fragment);
        ASSERT_FALSE(met[place]);
        met[place] = true;
        ++count;
      }
    }
    ASSERT_EQ(count, heads * order.fragments());
  }
  EXPECT_EQ(sm80::ItemBlocks({}, 3).grid(2).x, 0U);
  EXPECT_EQ(sm80::ItemBlocks({0, 5, 0}, 0).grid(2).x, 0U);
  EXPECT_EQ(sm80::ItemBlocks({0, 5, 0}, 3).grid(0).x, 0U);
}

}  // namespace
}  // namespace vidsparse::cuda
