#pragma once

#include "cuda/common/geometry.cuh"
#include "vidsparse/backend.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_layout.hpp"

namespace vidsparse::cuda {

/// Whether kernels can describe a layout: at most Side::kMaxSegments segments that hold tokens, and
/// fewer than 2^31 slots. `name` is "query" or "key".
Verdict can_describe(const char* name, const TileLayout& layout);

/// A layout that can be described, everything valid.
Side make_side(const TileLayout& layout);

/// The same with run-time lengths in device memory; an absent tensor leaves everything valid.
Side with_lengths(Side side, const TensorView& lengths);

}  // namespace vidsparse::cuda
