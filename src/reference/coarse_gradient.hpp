#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/backend.hpp"
#include "core/workspace.hpp"
#include "reference/matrix.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::reference {

/// The pooled branch's part of the backward, one query row at a time: pooled keys and values of a
/// key head in, their gradients gathered over all query tiles and heads that read it.
template <class T>
struct CoarseGradient {
  T* keys;              // [m][D]: of the m non-empty key tiles
  T* values;            // [m][D]
  T* key_columns;       // [D][m]
  T* value_columns;     // [D][m]
  T* dkeys;             // [m][D]
  T* dvalues;           // [m][D]
  T* weights;           // [m]
  T* dscores;           // [m]
  std::int64_t* tiles;  // [m]: which key tiles they are

  CoarseGradient(core::Arena& arena, const core::Setting& setting) {
    const std::int64_t depth = setting.problem.head_dim;
    const std::int64_t tile_count = setting.key.tiles();
    for (T** matrix : {&keys, &values, &key_columns, &value_columns, &dkeys, &dvalues}) {
      *matrix = arena.take<T>(tile_count * depth);
    }
    weights = arena.take<T>(tile_count);
    dscores = arena.take<T>(tile_count);
    tiles = arena.take<std::int64_t>(tile_count);
  }

  /// Takes the pooled tensors of a key head; returns m.
  std::int64_t start(const Side& side, const TensorView& kc, const TensorView& vc,
                     std::int64_t batch, std::int64_t key_head) const {
    const std::int64_t depth = kc.shape[3];
    std::int64_t m = 0;
    for (std::int64_t tile = 0; tile < side.tiles(); ++tile) {
      if (side.valid(batch, tile) == 0) continue;
      load_row(kc, batch, key_head, tile, keys + m * depth);
      load_row(vc, batch, key_head, tile, values + m * depth);
      tiles[m++] = tile;
    }
    transpose_rows(keys, m, depth, key_columns);
    transpose_rows(values, m, depth, value_columns);
    std::fill_n(dkeys, m * depth, T{0});
    std::fill_n(dvalues, m * depth, T{0});
    return m;
  }

  /// One query tile: its qc, oc and d_oc, and the row's saved max and sum. Writes dqc.
  template <class Arithmetic>
  void add_row(const Arithmetic& round, std::int64_t m, std::int64_t depth, T scale, const T* qc,
               const T* oc, const T* doc, SoftmaxSums<T> sums, T* dqc) const {
    std::fill_n(dqc, depth, T{0});
    if (sums.sum == T{0}) return;  // nothing had weight
    times_columns(round, qc, key_columns, depth, m, scale, weights);
    for (std::int64_t j = 0; j < m; ++j) {
      weights[j] = round(std::exp(weights[j] - sums.max) / sums.sum);
    }
    times_columns(round, doc, value_columns, depth, m, T{1}, dscores);
    const T delta = dot(doc, oc, depth);
    for (std::int64_t j = 0; j < m; ++j) dscores[j] = round(weights[j] * (dscores[j] - delta));
    weighted_sum(round, dscores, keys, m, depth, scale, dqc);
    for (std::int64_t j = 0; j < m; ++j) {
      add_scaled(scale * dscores[j], qc, depth, dkeys + j * depth);
      add_scaled(weights[j], doc, depth, dvalues + j * depth);
    }
  }
};

}  // namespace vidsparse::reference
