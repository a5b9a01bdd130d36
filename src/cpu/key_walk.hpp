#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cpu/sides.hpp"

namespace vidsparse::cpu {

/// Some tokens of a selected key tile.
struct KeyFragment {
  std::int64_t slot;  ///< in a head's pack
  int count;          ///< valid tokens
  int width;          ///< columns: count rounded up
};

/// The fragments of a mask row's tiles, ascending; empty tiles have none.
class KeyWalk {
 public:
  KeyWalk(const std::uint64_t* row, std::int64_t words, const Side& side,
          const std::int32_t* counts)
      : row_(row), words_(words), side_(side), counts_(counts), bits_(words > 0 ? row[0] : 0) {}

  /// Takes as many fragments as fit `columns`, in order; returns how many.
  int next_group(KeyFragment* fragments, int columns) {
    int count = 0;
    while (advance()) {
      const int here = static_cast<int>(std::min<std::int64_t>(kFragment, valid_ - done_));
      const int width = static_cast<int>(round_up(here, side_.multiple()));
      if (width > columns) break;
      fragments[count++] = {side_.slot(tile_) + done_, here, width};
      columns -= width;
      done_ += here;
    }
    return count;
  }

 private:
  /// To a tile with tokens left, if there is one.
  bool advance() {
    while (done_ == valid_) {
      while (bits_ == 0) {
        if (++word_ >= words_) return false;
        bits_ = row_[word_];
      }
      tile_ = word_ * 64 + std::countr_zero(bits_);
      bits_ &= bits_ - 1;
      if (tile_ >= side_.tiles()) return false;  // a caller's mask with tail bits
      valid_ = counts_[tile_];
      done_ = 0;
    }
    return true;
  }

  const std::uint64_t* row_;
  std::int64_t words_;
  const Side& side_;
  const std::int32_t* counts_;
  std::uint64_t bits_;
  std::int64_t word_ = 0;
  std::int64_t tile_ = 0;
  std::int64_t valid_ = 0;
  std::int64_t done_ = 0;
};

}  // namespace vidsparse::cpu
