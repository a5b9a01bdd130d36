#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "core/workspace.hpp"
#include "cpu/stages.hpp"
#include "cpu/workers.hpp"

// Scores of pooled tensors, exact top k and coarse output. kc^T (and vc) of all key heads are
// packed first; a unit of work is a block of query tiles of one head, whose score rows never leave
// its worker's scratch.

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;

struct Scratch {             // per worker
  float* q;                  ///< [rows][D]
  float* s;                  ///< [rows][columns]
  float* out;                ///< [rows][D]
  float* max;                ///< [rows]
  float* sum;                ///< [rows]
  std::uint64_t* ranks;      ///< [tiles]
  std::int32_t* candidates;  ///< [tiles]
  std::uint64_t* present;    ///< a mask row of the non-empty tiles
  std::uint64_t* plain;      ///< of the Plain ones
};

struct Space {
  std::int32_t* key_counts;
  float* k;              ///< B operand kc^T [B][G][columns / 64][D][64]
  float* v;              ///< B operand vc [B][G][D / 64][columns][64]
  std::int64_t columns;  ///< key tiles rounded up to 16
  std::int64_t rows;     ///< query tiles of a unit
  std::byte* scratch;
  std::size_t scratch_bytes;
};

Scratch lay_out_scratch(core::Arena& arena, const Space& space, std::int64_t tiles, int d) {
  Scratch scratch;
  scratch.q = arena.take<float>(space.rows * d);
  scratch.s = arena.take<float>(space.rows * space.columns);
  scratch.out = arena.take<float>(space.rows * d);
  scratch.max = arena.take<float>(space.rows);
  scratch.sum = arena.take<float>(space.rows);
  scratch.ranks = arena.take<std::uint64_t>(tiles);
  scratch.candidates = arena.take<std::int32_t>(tiles);
  const std::int64_t words = MaskShape{1, 1, 1, tiles}.row_words();
  scratch.present = arena.take<std::uint64_t>(words);
  scratch.plain = arena.take<std::uint64_t>(words);
  return scratch;
}

Space lay_out(core::Arena& arena, const Context& context, const SelectArgs& args) {
  Space space;
  const std::int64_t tiles = context.key.tiles();
  const int d = context.head_dim();
  space.columns = round_up(tiles, 16);
  space.rows = space.columns <= 4096 ? 64 : 16;
  space.key_counts =
      arena.take<std::int32_t>(context.key.count_words(context.batch(), args.lengths.key));
  const std::int64_t words = context.batch() * context.key_heads() * space.columns * d;
  space.k = arena.take<float>(words);
  space.v = arena.take<float>(args.oc ? words : 0);
  core::Arena one(nullptr);
  lay_out_scratch(one, space, tiles, d);
  space.scratch_bytes = one.used();
  space.scratch = arena.take<std::byte>(static_cast<std::int64_t>(space.scratch_bytes) *
                                        context.setting->parallel.concurrency());
  return space;
}

/// Higher scores get higher ranks, equal ones (-0 and +0 too) the lower index the higher rank; NaN
/// comes below -inf.
std::uint64_t rank_of(float score, std::int32_t tile) {
  std::uint32_t ordered = 0;
  if (score == score) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(score == 0.0f ? 0.0f : score);
    ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  }
  return static_cast<std::uint64_t>(ordered) << 32 |
         (std::numeric_limits<std::uint32_t>::max() - static_cast<std::uint32_t>(tile));
}

std::int64_t tile_of_rank(std::uint64_t rank) {
  return std::numeric_limits<std::uint32_t>::max() - static_cast<std::uint32_t>(rank);
}

class Select {
 public:
  Select(const Context& context, const SelectArgs& args, Workspace workspace)
      : context_(context), kernels_(*context.kernels), args_(args) {
    core::Arena arena(workspace.data);
    space_ = lay_out(arena, context, args);
    counts_ = context.key.counts(context.batch(), args.lengths.key, space_.key_counts);
    d_ = context.head_dim();
    tiles_ = context.key.tiles();
    top_k_ = core::resolve_top_k(args.selection, context.key.layout());
    compete_ = args.selection.prefix_mode == PrefixMode::compete;
    if (compete_) top_k_ += context.key.layout().plain_tiles();
    scale_ = static_cast<float>(context.scale(args.scale));
  }

  void run() {
    const ParallelFor& parallel = context_.setting->parallel;
    const std::int64_t blocks = (space_.columns + kPanel - 1) / kPanel;
    const std::int64_t pairs = context_.batch() * context_.key_heads();
    for_each_unit(parallel, kernels_, pairs * blocks,
                  [&](std::int64_t unit, int) { pack(unit / blocks, unit % blocks * kPanel); });
    const std::int64_t query_tiles = context_.query.tiles();
    const std::int64_t strips = (query_tiles + space_.rows - 1) / space_.rows;
    const std::int64_t units = context_.batch() * context_.heads() * strips;
    for_each_unit(parallel, kernels_, units, [&](std::int64_t unit, int worker) {
      const std::int64_t head = unit / strips;
      const std::int64_t first = unit % strips * space_.rows;
      core::Arena arena(space_.scratch + static_cast<std::size_t>(worker) * space_.scratch_bytes);
      strip(head / context_.heads(), head % context_.heads(), first,
            std::min(space_.rows, query_tiles - first), lay_out_scratch(arena, space_, tiles_, d_));
    });
  }

 private:
  float* packed(float* base, std::int64_t b, std::int64_t g) const {
    return base + (b * context_.key_heads() + g) * space_.columns * d_;
  }

  /// Columns first..first + 63 of kc^T and the same rows of vc; empty tiles are zero.
  void pack(std::int64_t pair, std::int64_t first) const {
    const std::int64_t b = pair / context_.key_heads();
    const std::int64_t g = pair % context_.key_heads();
    const int width = static_cast<int>(std::min<std::int64_t>(kPanel, space_.columns - first));
    const std::int32_t* counts = counts_.row(b);
    alignas(64) const float zeros[kMaxHeadDim] = {};
    const void* k_rows[kPanel];
    const void* v_rows[kPanel];
    for (int i = 0; i < width; ++i) {
      const std::int64_t tile = first + i;
      const bool there = tile < tiles_ && counts[tile] > 0;
      k_rows[i] =
          there ? static_cast<const float*>(args_.kc.data) + args_.kc.offset(b, g, tile) : zeros;
      v_rows[i] = there && args_.oc
                      ? static_cast<const float*>(args_.vc.data) + args_.vc.offset(b, g, tile)
                      : zeros;
    }
    float* k = packed(space_.k, b, g) + first * d_;
    kernels_.transpose_words(k_rows, width, d_, reinterpret_cast<std::uint32_t*>(k), width, width,
                             d_);
    if (!args_.oc) return;
    float* v = packed(space_.v, b, g);
    for (int column = 0; column < d_; column += kPanel) {
      const int here = std::min(kPanel, d_ - column);
      for (int i = 0; i < width; ++i) {
        std::memcpy(v + column * space_.columns + (first + i) * here,
                    static_cast<const float*>(v_rows[i]) + column,
                    static_cast<std::size_t>(here) * sizeof(float));
      }
    }
  }

  void strip(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t rows,
             const Scratch& scratch) const {
    const std::int64_t g = head / context_.group();
    const int m = static_cast<int>(rows);
    const int n = static_cast<int>(space_.columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(scratch.q + i * d_,
                  static_cast<const float*>(args_.qc.data) + args_.qc.offset(b, head, first + i),
                  static_cast<std::size_t>(d_) * sizeof(float));
    }
    const Term scores{scratch.q, packed(space_.k, b, g), d_, d_};
    kernels_.product_f32({&scores, 1, scratch.s, n, m, n, false});
    const std::int32_t* counts = counts_.row(b);
    for (std::int64_t i = 0; i < rows; ++i) {
      float* s = scratch.s + i * n;
      for (std::int64_t j = 0; j < tiles_; ++j) s[j] *= scale_;
      for (std::int64_t j = 0; j < tiles_; ++j) {
        if (counts[j] == 0) s[j] = -kInfinity;
      }
      std::fill(s + tiles_, s + n, -kInfinity);
    }
    const std::int64_t count = list_candidates(counts, scratch);
    for (std::int64_t i = 0; i < rows; ++i) {
      select_row(b, head, first + i, scratch.s + i * n, count, scratch);
    }
    if (args_.oc) coarse(b, head, first, m, scratch);
  }

  /// The tiles a row chooses its top k from: non-empty, and video ones unless Plain tiles compete.
  std::int64_t list_candidates(const std::int32_t* counts, const Scratch& scratch) const {
    const TileLayout& layout = context_.key.layout();
    const std::int64_t words = args_.mask.shape.row_words();
    std::fill_n(scratch.present, words, std::uint64_t{0});
    std::fill_n(scratch.plain, words, std::uint64_t{0});
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < tiles_; ++j) {
      if (counts[j] == 0) continue;
      set(scratch.present, j);
      const bool plain = layout.is_plain(j);
      if (plain) set(scratch.plain, j);
      if (compete_ || !plain) scratch.candidates[count++] = static_cast<std::int32_t>(j);
    }
    return count;
  }

  static void set(std::uint64_t* row, std::int64_t tile) {
    row[tile / 64] |= std::uint64_t{1} << (tile % 64);
  }

  /// Empty tiles are never selected, not even where all or certain tiles are.
  void select_row(std::int64_t b, std::int64_t head, std::int64_t tile, const float* s,
                  std::int64_t count, const Scratch& scratch) const {
    std::uint64_t* row = args_.mask.row(b, head, tile);
    const std::int64_t words = args_.mask.shape.row_words();
    const bool all = context_.query.layout().is_plain(tile);
    if (all) {
      std::copy_n(scratch.present, words, row);
    } else if (compete_) {
      std::fill_n(row, words, std::uint64_t{0});
    } else {
      std::copy_n(scratch.plain, words, row);
    }
    const std::int32_t* candidates = scratch.candidates;
    if (!all && count <= top_k_) {
      for (std::int64_t i = 0; i < count; ++i) set(row, candidates[i]);
    } else if (!all && top_k_ > 0) {
      std::uint64_t* ranks = scratch.ranks;
      for (std::int64_t i = 0; i < count; ++i) ranks[i] = rank_of(s[candidates[i]], candidates[i]);
      std::nth_element(ranks, ranks + top_k_ - 1, ranks + count, std::greater<>());
      for (std::int64_t i = 0; i < top_k_; ++i) set(row, tile_of_rank(ranks[i]));
    }
    if (!args_.selection.always) return;
    const std::uint64_t* always = args_.selection.always.row(b, head, tile);
    for (std::int64_t word = 0; word < words; ++word) {
      row[word] |= always[word] & scratch.present[word];
    }
  }

  /// Softmax over the scores and its product with vc.
  void coarse(std::int64_t b, std::int64_t head, std::int64_t first, int m,
              const Scratch& scratch) const {
    const int n = static_cast<int>(space_.columns);
    kernels_.softmax_f32(
        {scratch.s, n, nullptr, 0, m, n, kLog2E, scratch.max, scratch.sum, nullptr, 0, 0, true});
    const Term term{scratch.s, packed(space_.v, b, head / context_.group()), n, n};
    kernels_.product_f32({&term, 1, scratch.out, d_, m, d_, false});
    for (int i = 0; i < m; ++i) {
      const float sum = scratch.sum[i];
      float* out = scratch.out + static_cast<std::ptrdiff_t>(i) * d_;
      // A row without weight is 0 even over infinite values.
      if (sum == 0.0f) std::fill_n(out, d_, 0.0f);
      float* oc = static_cast<float*>(args_.oc.data) + args_.oc.offset(b, head, first + i);
      kernels_.finish_row(
          {out, sum == 0.0f ? 0.0f : 1.0f / sum, nullptr, nullptr, 0.0f, DType::f32, oc, d_});
      if (args_.coarse_max) {
        static_cast<float*>(args_.coarse_max.data)[args_.coarse_max.offset(b, head, first + i)] =
            scratch.max[i] * kLn2;
      }
      if (args_.coarse_sum) {
        static_cast<float*>(args_.coarse_sum.data)[args_.coarse_sum.offset(b, head, first + i)] =
            sum;
      }
    }
  }

  const Context& context_;
  const Kernels& kernels_;
  const SelectArgs& args_;
  Space space_;
  Counts counts_;
  int d_;
  std::int64_t tiles_;
  std::int64_t top_k_;
  bool compete_;
  float scale_;
};

}  // namespace

std::size_t select_bytes(const Context& context, const SelectArgs& args) {
  core::Arena arena(nullptr);
  lay_out(arena, context, args);
  return arena.used();
}

void select(const Context& context, const SelectArgs& args, Workspace workspace) {
  if (context.query.tiles() == 0) return;
  Select(context, args, workspace).run();
}

}  // namespace vidsparse::cpu
