// The command's small parts: size parsing, presets, tile shapes, thread pool, texts.
#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "parse.hpp"
#include "pool.hpp"
#include "presets.hpp"
#include "refuse.hpp"
#include "text.hpp"
#include "tile_shapes.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::tools {
namespace {

using Box = std::array<std::int64_t, 3>;

template <class Call>
void expect_refused(const char* argument, Call&& call) {
  try {
    call();
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.argument(), argument);
    EXPECT_EQ(std::string(error.what()).rfind(std::string(argument) + ": ", 0), 0U) << error.what();
  }
}

TEST(Parse, Sizes) {
  EXPECT_EQ(parse_box("--grid", "21x30x52"), (Box{21, 30, 52}));
  EXPECT_EQ(parse_box("--grid", "9223372036854775807x1x1")[0], INT64_MAX);
  EXPECT_EQ(parse_size("--size", "320x180"), (std::array<std::int64_t, 2>{320, 180}));
  EXPECT_EQ(parse_lengths("--prefix", "77,12"), (std::vector<std::int64_t>{77, 12}));
  EXPECT_EQ(parse_lengths("--prefix", "0"), (std::vector<std::int64_t>{0}));
  EXPECT_TRUE(parse_lengths("--prefix", "").empty());
  EXPECT_EQ(parse_device("--device", "cpu"), Device{});
  EXPECT_EQ(parse_device("--device", "cuda:3"), (Device{Device::Kind::cuda, 3}));
  EXPECT_EQ(box_text({4, 4, 4}), "4x4x4");
}

TEST(Parse, RefusesWhatIsNoSize) {
  for (const char* text : {"", "x", "21x30", "21x30x52x1", "0x1x1", "-1x2x3", "+1x2x3", "1x2x3 ",
                           " 1x2x3", "1X2X3", "1x2x9223372036854775808", "1.5x2x3", "1,2,3"}) {
    expect_refused("--grid", [&] { parse_box("--grid", text); });
  }
  for (const char* text : {",", "1,", "-1", "1;2", "99999999999999999999"}) {
    expect_refused("--prefix", [&] { parse_lengths("--prefix", text); });
  }
}

TEST(Refuse, MakesOnePrintableLine) {
  EXPECT_EQ(printable("a\nb\tc\x7f"), "a?b?c?");
  EXPECT_EQ(printable(std::string(300, 'a')).size(), 203U);
  expect_refused("--out", [] { refuse("--out", "a file", "none"); });
}

// The rows of the specification's table.
TEST(Presets, TilesAndWaste) {
  struct Row {
    const char* name;
    double tokens, tiles, waste;
  };
  for (const Row& row : {Row{"wan1.3b-480p", 32760, 624, 0.219}, Row{"33k", 33280, 520, 0},
                         Row{"wan14b-720p", 75600, 1440, 0.219},
                         Row{"hunyuan-720p", 118800, 2160, 0.164}, Row{"123k", 122880, 1920, 0},
                         Row{"wan5b-704p", 27280, 480, 0.126}, Row{"ltx2-1088p", 32640, 540, 0.059},
                         Row{"h3-5s", 37296, 660, 0.133}, Row{"wan1.3b-448x832", 29120, 455, 0}}) {
    const Preset& preset = find_preset("--preset", row.name);
    const TileCost cost = tile_cost(preset.grid, {4, 4, 4});
    EXPECT_EQ(static_cast<double>(preset.grid[0] * preset.grid[1] * preset.grid[2]), row.tokens)
        << row.name;
    EXPECT_EQ(cost.tiles, row.tiles) << row.name;
    EXPECT_NEAR(cost.waste, row.waste, 6e-4) << row.name;
  }
  EXPECT_EQ(presets().size(), 9U);
  expect_refused("--preset", [] { find_preset("--preset", "wan"); });
}

TEST(TileShapes, FindsTheKnownBetterOnes) {
  const Box wan14b{21, 45, 80};
  const TileCost cubic = tile_cost(wan14b, {4, 4, 4});
  bool found_192 = false;
  for (const TileCost& cost : better_tiles(wan14b, cubic)) {
    EXPECT_EQ(cost.tile.tokens() % 64, 0);
    EXPECT_LT(cost.waste, cubic.waste);
    EXPECT_NEAR(cost.waste, tile_cost(wan14b, cost.tile).waste, 1e-12);
    found_192 = found_192 || (cost.tile.tokens() == 192 && cost.waste <= 0.067);
  }
  EXPECT_TRUE(found_192);
  EXPECT_NEAR(tile_cost(wan14b, {3, 8, 8}).waste, 0.067, 5e-4);
  EXPECT_NEAR(tile_cost(wan14b, {2, 4, 8}).waste, 0.117, 5e-4);
  EXPECT_TRUE(better_tiles({20, 32, 52}, tile_cost({20, 32, 52}, {4, 4, 4})).empty());
  // An image: tiles one frame deep.
  const auto image = better_tiles({1, 64, 64}, tile_cost({1, 64, 64}, {4, 4, 4}));
  ASSERT_FALSE(image.empty());
  EXPECT_EQ(image.front().tile, (TileShape{1, 8, 8}));
}

TEST(Pool, RunsEveryIndexOnceOnAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 5}) {
    const ParallelFor parallel = make_parallel_for(threads);
    EXPECT_EQ(parallel.concurrency(), threads > 0 ? threads : available_threads());
    for (const std::int64_t count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      std::atomic<int> at_once{0};
      std::atomic<int> most{0};
      parallel(count, [&](std::int64_t i) {
        const int now = ++at_once;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        ++runs[static_cast<std::size_t>(i)];
        --at_once;
      });
      for (const auto& run : runs) EXPECT_EQ(run.load(), 1);
      EXPECT_LE(most.load(), parallel.concurrency());
    }
  }
}

TEST(Pool, IsUsableFromSeveralThreads) {
  const ParallelFor parallel = make_parallel_for(2);
  std::atomic<std::int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] { parallel(100, [&](std::int64_t i) { sum += i; }); });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 3 * 4950);
}

TEST(Text, Units) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(15.26e6), "15.3 MB");
  EXPECT_EQ(bytes_text(999.9e6), "1.00 GB");
  EXPECT_EQ(flops_text(1.204e12), "1.20 TFLOP");
  EXPECT_EQ(percent_text(0.2192), "21.9 %");
}

}  // namespace
}  // namespace vidsparse::tools
