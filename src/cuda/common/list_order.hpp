#pragma once

#include <cstdint>

namespace vidsparse::cuda {

/// In which order a pass over a key-major mask takes the key tiles of a head: the longest lists
/// first. Query tiles choose equally many keys each, but keys are chosen by as many queries as like
/// them; consumers and blocks that work side by side should have lists of like length, and a launch
/// should not end with a long one. Lengths are compared in steps of a 64th of the longest; tiles
/// that are equal in that keep their order, as neighbours share what they read.
struct ListOrder {
  const std::uint64_t* mask = nullptr;  ///< [planes, members, tiles, row_words], dense
  std::int32_t planes = 0;              ///< batch entries x key heads; 0: nothing to do
  std::int32_t members = 1;             ///< query heads of a plane: their lists are one
  std::int32_t tiles = 0;
  std::int32_t row_words = 0;
  std::int32_t* lengths = nullptr;  ///< [planes, tiles], scratch
  std::int32_t* order = nullptr;    ///< [planes, tiles]: every tile once
};

}  // namespace vidsparse::cuda
