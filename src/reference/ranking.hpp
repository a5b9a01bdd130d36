#pragma once

#include <cmath>
#include <cstdint>

#include "core/backend.hpp"

namespace vidsparse::reference {

/// Whether key tile `a` is chosen before key tile `b`: the higher score, NaN below -inf, -0 and +0
/// alike, ties to the lowest index. A strict total order.
template <class T>
bool ranks_before(T score_a, std::int64_t a, T score_b, std::int64_t b) {
  if (std::isnan(score_a) || std::isnan(score_b)) {
    return std::isnan(score_a) == std::isnan(score_b) ? a < b : std::isnan(score_b);
  }
  return score_a == score_b ? a < b : score_a > score_b;
}

/// What a row of the selection may and must hold, from the kinds of its tiles alone.
class SelectionRule {
 public:
  SelectionRule(const core::Setting& setting, const Selection& selection)
      : query_(setting.query), key_(setting.key), mode_(selection.prefix_mode) {
    count_ = core::resolve_top_k(selection, setting.key);
    if (mode_ == PrefixMode::compete) count_ += key_.plain_tiles();
  }

  /// Plain query tiles keep everything.
  bool keeps_all(std::int64_t query_tile) const { return query_.is_plain(query_tile); }
  /// Kept whatever the score, in a row that does not keep all.
  bool exempt(std::int64_t key_tile) const {
    return mode_ == PrefixMode::exempt && key_.is_plain(key_tile);
  }
  /// How many of the tiles that are not exempt the row keeps, if there are that many.
  std::int64_t count() const { return count_; }

 private:
  const TileLayout& query_;
  const TileLayout& key_;
  PrefixMode mode_;
  std::int64_t count_ = 0;
};

}  // namespace vidsparse::reference
