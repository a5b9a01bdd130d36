// How select is laid out on a GPU, on the host: what fits, what is chosen.

#include "cuda/common/select_shape.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "cuda/common/select_config.hpp"

namespace vidsparse::cuda {
namespace {

constexpr int kH200 = 227 * 1024;
constexpr int kA100 = 163 * 1024;
constexpr int kAda = 99 * 1024;

SelectSize square(int head_dim, std::int64_t heads, int tiles, int shared_bytes = kH200) {
  return {head_dim, heads, tiles, tiles, 132, shared_bytes};
}

TEST(CudaSelectShape, EveryShapeFitsAndCoversAllRows) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 engine(seed);
  for (int round = 0; round < 2000; ++round) {
    const auto below = [&](std::uint64_t limit) { return static_cast<int>(engine() % limit); };
    SelectSize size{};
    size.head_dim = below(2) == 0 ? 64 : 128;
    size.heads = 1 + below(100);
    size.query_tiles = below(2) == 0 ? below(100) : below(20000);
    size.key_tiles = below(2) == 0 ? below(100) : below(20000);
    size.multiprocessors = 1 + below(200);
    size.shared_bytes = std::vector{kH200, kA100, kAda}[static_cast<std::size_t>(below(3))];
    std::vector<SelectShape> shapes = {choose_select_shape(size)};
    for (const SelectBlock block : select_blocks(size.head_dim)) {
      if (const auto shape = select_shape(size, block)) shapes.push_back(*shape);
    }
    for (const SelectShape& shape : shapes) {
      EXPECT_LE(shape.shared_bytes, static_cast<std::size_t>(size.shared_bytes));
      EXPECT_GE(shape.strips * shape.block.rows, size.query_tiles);
      EXPECT_LT(shape.strips * shape.block.rows, size.query_tiles + shape.block.rows);
      EXPECT_EQ(shape.items, size.heads * shape.strips);
      EXPECT_LE(shape.blocks, shape.items);
      EXPECT_EQ(shape.blocks == 0, shape.items == 0);
      if (shape.on_chip) {
        EXPECT_EQ(shape.blocks, shape.items);
        EXPECT_EQ(shape.scratch_words, 0);
      } else {
        EXPECT_EQ(shape.block, kOffChip);
        EXPECT_GE(shape.scratch_words, shape.blocks * shape.block.rows * size.key_tiles);
      }
      // No other shape is expected to be faster than the one that was chosen.
      EXPECT_LE(select_cost(size, shapes.front()), select_cost(size, shape));
    }
  }
}

TEST(CudaSelectShape, OneBlockForEachMultiprocessorWhereThatFillsThem) {
  const SelectShape shape = choose_select_shape(square(128, 12, 520));
  EXPECT_EQ(shape.block, (SelectBlock{48, 384}));
  EXPECT_EQ(shape.blocks, 132);
}

TEST(CudaSelectShape, AsManyRowsAsFitWhereBlocksAreMany) {
  EXPECT_EQ(choose_select_shape(square(128, 40, 1440)).block, (SelectBlock{32, 512}));
  EXPECT_EQ(choose_select_shape(square(64, 40, 1440)).block, (SelectBlock{32, 512}));
  EXPECT_EQ(choose_select_shape(square(128, 24, 1920)).block, (SelectBlock{16, 512}));
}

TEST(CudaSelectShape, RowsThatFitNowhereLieInWorkspace) {
  for (const int room : {kH200, kA100, kAda}) {
    const SelectShape shape = choose_select_shape(square(128, 12, 8192, room));
    EXPECT_FALSE(shape.on_chip);
    EXPECT_GT(shape.scratch_words, 0);
  }
  EXPECT_FALSE(select_shape(square(128, 12, 8192), {32, 512}));
}

}  // namespace
}  // namespace vidsparse::cuda
