#pragma once

#include "vidsparse/backend.hpp"
#include "vidsparse/problem.hpp"
#include "vidsparse/tile_layout.hpp"

namespace vidsparse::cuda {

/// Whether the stages that all architectures share can run a problem: its dtype, its head_dim, and
/// counts that fit 31 bits.
Verdict within_limits(const Problem& problem, const TileLayout& query, const TileLayout& key);

/// Whether a table can hold the fragments of a side (`name`: query or key): videos of at most
/// 4096 x 65536 (T x H).
Verdict fits_fragment_table(const char* name, const TileLayout& layout);

}  // namespace vidsparse::cuda
