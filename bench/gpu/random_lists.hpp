#pragma once

#include "vidsparse/vidsparse.hpp"

namespace vidsparse {

/// Random lists of `kept` key tiles of which a share is common to the tiles of each 2 x 4 x 4
/// neighbourhood, as those of real video are.
TileMask common_lists(const Plan& plan, std::int64_t kept, double share);

/// Random lists of `kept` key tiles that are not equally popular: their weights are log-normal,
/// half of them within a factor of 1.4 of the median. Each head has the same lists, of other tiles.
TileMask uneven_lists(const Plan& plan, std::int64_t kept);

}  // namespace vidsparse
