#include <algorithm>
#include <cmath>

#include "reference/lanes.hpp"
#include "reference/matrix.hpp"
#include "reference/op.hpp"
#include "reference/ranking.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::reference {

double scale_of(const Problem& problem, const std::optional<double>& given) {
  return given ? *given : 1.0 / std::sqrt(static_cast<double>(problem.head_dim));
}

namespace {

template <class T>
struct SelectLane {
  T* query;              // [D]
  T* keys;               // [m][D]: pooled keys of the m non-empty key tiles
  T* key_columns;        // [D][m]
  T* values;             // [m][D]
  T* scores;             // [m]
  T* coarse;             // [D]
  std::int64_t* tiles;   // [m]: which key tiles they are
  std::int64_t* ranked;  // [m]: positions in `tiles`

  SelectLane(core::Arena& arena, const core::Setting& setting) {
    const std::int64_t depth = setting.problem.head_dim;
    const std::int64_t tile_count = setting.key.tiles();
    query = arena.take<T>(depth);
    keys = arena.take<T>(tile_count * depth);
    key_columns = arena.take<T>(tile_count * depth);
    values = arena.take<T>(tile_count * depth);
    scores = arena.take<T>(tile_count);
    coarse = arena.take<T>(depth);
    tiles = arena.take<std::int64_t>(tile_count);
    ranked = arena.take<std::int64_t>(tile_count);
  }
};

void set_bit(std::uint64_t* row, std::int64_t tile) {
  row[tile / 64] |= std::uint64_t{1} << (tile % 64);
}

/// One row of the bitmap from the scores of its m non-empty key tiles.
template <class T>
void choose(const SelectLane<T>& lane, std::int64_t m, const SelectionRule& rule,
            std::int64_t query_tile, const std::uint64_t* always, std::uint64_t* row,
            std::int64_t row_words) {
  std::fill_n(row, row_words, std::uint64_t{0});
  std::int64_t candidates = 0;
  for (std::int64_t n = 0; n < m; ++n) {
    const std::int64_t tile = lane.tiles[n];
    const bool forced = always != nullptr && ((always[tile / 64] >> (tile % 64)) & 1U) != 0;
    const bool kept = rule.keeps_all(query_tile) || rule.exempt(tile);
    if (kept || forced) set_bit(row, tile);
    // A forced tile still takes its place among the k: `always` comes on top of them.
    if (!kept) lane.ranked[candidates++] = n;
  }
  std::sort(lane.ranked, lane.ranked + candidates, [&](std::int64_t a, std::int64_t b) {
    return ranks_before(lane.scores[a], a, lane.scores[b], b);
  });
  const std::int64_t count = std::min(rule.count(), candidates);
  for (std::int64_t n = 0; n < count; ++n) set_bit(row, lane.tiles[lane.ranked[n]]);
}

}  // namespace

template <class Arithmetic>
std::size_t Op<Arithmetic>::workspace_bytes(const SelectArgs&) const {
  return lanes_bytes<SelectLane<Scalar>>(setting_);
}

template <class Arithmetic>
void Op<Arithmetic>::select(const SelectArgs& args, Workspace workspace) const {
  const Side key(setting_.key, args.lengths.key);
  const SelectionRule rule(setting_, args.selection);
  const auto scale = static_cast<Scalar>(scale_of(setting_.problem, args.scale));
  const std::int64_t depth = setting_.problem.head_dim;
  const std::int64_t group = setting_.problem.heads_q / setting_.problem.key_heads();

  for_each_key_head<SelectLane<Scalar>>(
      setting_, workspace,
      [&](const SelectLane<Scalar>& lane, std::int64_t batch, std::int64_t key_head) {
        std::int64_t m = 0;
        for (std::int64_t tile = 0; tile < key.tiles(); ++tile) {
          if (key.valid(batch, tile) == 0) continue;
          load_row(args.kc, batch, key_head, tile, lane.keys + m * depth);
          if (args.oc) load_row(args.vc, batch, key_head, tile, lane.values + m * depth);
          lane.tiles[m++] = tile;
        }
        transpose_rows(lane.keys, m, depth, lane.key_columns);

        for (std::int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
          for (std::int64_t tile = 0; tile < setting_.query.tiles(); ++tile) {
            load_row(args.qc, batch, head, tile, lane.query);
            times_columns(round_, lane.query, lane.key_columns, depth, m, scale, lane.scores);
            if (args.mask) {
              const TileMaskView& always = args.selection.always;
              choose(lane, m, rule, tile, always ? always.row(batch, head, tile) : nullptr,
                     args.mask.row(batch, head, tile), args.mask.shape.row_words());
            }
            if (args.oc) {
              const SoftmaxSums<Scalar> sums = softmax(round_, lane.scores, m);
              weighted_sum(round_, lane.scores, lane.values, m, depth, Scalar{1}, lane.coarse);
              // Weights of 0 must not meet an infinite vc where there is no weight at all.
              if (sums.sum == Scalar{0}) std::fill_n(lane.coarse, depth, Scalar{0});
              store_row(args.oc, batch, head, tile, lane.coarse);
              if (args.coarse_max) {
                store(args.coarse_max, args.coarse_max.offset(batch, head) + tile, sums.max);
              }
              if (args.coarse_sum) {
                store(args.coarse_sum, args.coarse_sum.offset(batch, head) + tile, sums.sum);
              }
            }
          }
        }
      });
}

template std::size_t Op<ExactArithmetic<double>>::workspace_bytes(const SelectArgs&) const;
template void Op<ExactArithmetic<double>>::select(const SelectArgs&, Workspace) const;
template std::size_t Op<ExactArithmetic<float>>::workspace_bytes(const SelectArgs&) const;
template void Op<ExactArithmetic<float>>::select(const SelectArgs&, Workspace) const;
template std::size_t Op<PlainArithmetic>::workspace_bytes(const SelectArgs&) const;
template void Op<PlainArithmetic>::select(const SelectArgs&, Workspace) const;

}  // namespace vidsparse::reference
