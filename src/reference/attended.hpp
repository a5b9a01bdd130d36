#pragma once

#include <cstdint>

#include "core/backend.hpp"
#include "core/workspace.hpp"
#include "reference/matrix.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::reference {

/// The keys and values one query tile attends, gathered: the n valid tokens of its selected tiles
/// in ascending order. Tokens that are not valid are never read, so nothing in a pad can leak.
template <class T>
struct Attended {
  std::int64_t* tokens;  // [n]
  T* keys;               // [n][D]
  T* key_columns;        // [D][n]
  T* values;             // [n][D]
  T* value_columns;      // [D][n]

  Attended(core::Arena& arena, const core::Setting& setting) {
    const std::int64_t capacity = setting.key.tokens();
    const std::int64_t depth = setting.problem.head_dim;
    tokens = arena.take<std::int64_t>(capacity);
    keys = arena.take<T>(capacity * depth);
    key_columns = arena.take<T>(capacity * depth);
    values = arena.take<T>(capacity * depth);
    value_columns = arena.take<T>(capacity * depth);
  }

  /// Returns n. `row` is the query tile's row of the mask.
  std::int64_t gather(const Side& side, const TensorView& k, const TensorView& v,
                      std::int64_t batch, std::int64_t key_head, const std::uint64_t* row,
                      std::int64_t row_words) const {
    const std::int64_t depth = k.shape[3];
    std::int64_t n = 0;
    for_each_set(row, row_words, [&](std::int64_t tile) {
      side.for_each_token(batch, tile, [&](std::int64_t token) {
        load_row(k, batch, token, key_head, keys + n * depth);
        load_row(v, batch, token, key_head, values + n * depth);
        tokens[n++] = token;
      });
    });
    transpose_rows(keys, n, depth, key_columns);
    transpose_rows(values, n, depth, value_columns);
    return n;
  }
};

/// The gate of one token: its row of the tensor, or the scalar D times.
template <class T>
void load_gate(const Gate& gate, std::int64_t batch, std::int64_t token, std::int64_t head,
               std::int64_t depth, T* row) {
  if (gate.is_tensor()) {
    load_row(gate.tensor(), batch, token, head, row);
  } else {
    std::fill_n(row, depth, static_cast<T>(gate.value()));
  }
}

}  // namespace vidsparse::reference
