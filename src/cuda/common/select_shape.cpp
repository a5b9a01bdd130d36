#include "cuda/common/select_shape.hpp"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/check.hpp"
#include "cuda/common/select_config.hpp"
#include "vidsparse/error.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse::cuda {
namespace {

/// Thread blocks that share a multiprocessor.
int residents(const SelectSize& size, const SelectShape& shape) {
  constexpr std::size_t kReserved = 1024;  // of shared memory, by the system, a block
  const std::size_t room = static_cast<std::size_t>(size.shared_bytes) + kReserved;
  const auto by_memory = static_cast<int>(room / (shape.shared_bytes + kReserved));
  const int by_registers = with_select_config(size.head_dim, shape.block,
                                              []<class Config>(Config) { return Config::kBlocks; });
  return std::max(1, std::min(by_memory, by_registers));
}

std::string name_of(SelectBlock block) {
  return std::to_string(block.rows) + "x" + std::to_string(block.threads);
}

SelectShape forced_shape(const SelectSize& size, const std::string& name) {
  for (const SelectBlock block : select_blocks(size.head_dim)) {
    if (name_of(block) != name) continue;
    if (const auto shape = select_shape(size, block)) return *shape;
  }
  throw Error(ErrorCode::invalid_argument, "VIDSPARSE_SELECT_BLOCK",
              "expected a block that is built and fits, got " + name);
}

}  // namespace

std::optional<SelectShape> select_shape(const SelectSize& size, SelectBlock block) {
  SelectShape shape;
  shape.block = block;
  shape.row_words = static_cast<int>(MaskShape{1, 1, 1, size.key_tiles}.row_words()) * 2;
  const auto bytes = [&](bool on_chip) {
    return with_select_config(size.head_dim, block, [&]<class Config>(Config) {
      return Config::shared_bytes(size.key_tiles, shape.row_words, on_chip);
    });
  };
  const auto room = static_cast<std::size_t>(size.shared_bytes);
  shape.on_chip = bytes(true) <= room;
  if (!shape.on_chip && block != kOffChip) return std::nullopt;
  shape.shared_bytes = bytes(shape.on_chip);
  shape.strips = core::ceil_div(size.query_tiles, block.rows);
  shape.items = size.heads * shape.strips;
  shape.blocks = shape.items;
  if (!shape.on_chip) {
    // As many as run at once: each needs scratch.
    shape.blocks = std::min<std::int64_t>(shape.items, 2 * size.multiprocessors);
    shape.scratch_words =
        shape.blocks * with_select_config(size.head_dim, block, [&]<class Config>(Config) {
          return std::int64_t{Config::kRows} * Config::score_pitch(size.key_tiles);
        });
  }
  return shape;
}

double select_cost(const SelectSize& size, const SelectShape& shape) {
  // Of one key tile, fitted at head_dim 128 to every block at 520 to 1920 tiles: bringing it to a
  // block, and a row's work on it. Few warps wait for their own instructions.
  constexpr double kBrought = 10;
  constexpr double kRow = 1.1;
  constexpr double kFewWarps = 2;
  // Off chip, a row's scores come from the second-level cache several times.
  constexpr double kOffChipRow = 3 * kRow;
  const double depth = size.head_dim / 128.0;
  const double row = shape.on_chip ? kRow : kOffChipRow;
  // `blocks` at work together on one multiprocessor.
  const auto together = [&](std::int64_t blocks) {
    const auto n = static_cast<double>(blocks);
    const double warps = n * shape.block.threads / 32.0;
    return n * size.key_tiles * (kBrought * depth + row * shape.block.rows) *
           (1 + kFewWarps / warps) / (1 + kFewWarps / 16);
  };
  const std::int64_t most = residents(size, shape);
  const std::int64_t slots = most * size.multiprocessors;
  const std::int64_t rest = core::ceil_div(shape.items % slots, size.multiprocessors);
  return static_cast<double>(shape.items / slots) * together(most) +
         (rest > 0 ? together(rest) : 0);
}

SelectShape choose_select_shape(const SelectSize& size) {
  const char* forced = std::getenv("VIDSPARSE_SELECT_BLOCK");
  if (forced != nullptr && *forced != '\0') return forced_shape(size, forced);
  std::optional<SelectShape> best;
  double least = 0;
  for (const SelectBlock block : select_blocks(size.head_dim)) {
    const auto shape = select_shape(size, block);
    if (!shape) continue;
    const double cost = select_cost(size, *shape);
    if (best && cost >= least) continue;
    best = shape;
    least = cost;
  }
  return *best;  // kOffChip needs two bitmap rows alone
}

}  // namespace vidsparse::cuda
