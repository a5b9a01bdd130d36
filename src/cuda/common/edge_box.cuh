#pragma once

#include <cstdint>

#include "cuda/common/geometry.cuh"

namespace vidsparse::cuda {

/// A smaller box than a fragment's own, for fragments that the edge of their segment cuts short:
/// one side is the power of two that holds what is left, so its slots are 16 or 32. Kernels that
/// load such boxes put several of them into the place of one fragment.
struct EdgeBox {
  static constexpr std::int32_t kUnit = 16;  ///< slots, of a fragment's 64

  std::int32_t segment = 0;
  std::int32_t log_t = 0;  ///< log2 of its sides
  std::int32_t log_h = 0;
  std::int32_t log_w = 0;

  constexpr Triple sides() const { return {1 << log_t, 1 << log_h, 1 << log_w}; }
  constexpr std::int32_t units() const { return (1 << (log_t + log_h + log_w)) / kUnit; }

  /// Whether all valid slots of a fragment lie in its box.
  constexpr bool holds(const Fragment& fragment) const {
    return fragment.segment == segment && fragment.extent.t <= 1 << log_t &&
           fragment.extent.h <= 1 << log_h && fragment.extent.w <= 1 << log_w;
  }
};

/// Those of a side, the smallest first.
struct EdgeBoxes {
  static constexpr std::int32_t kMost = 2;

  std::int32_t count = 0;
  EdgeBox boxes[kMost];

  /// The smallest that holds a fragment's valid slots, or -1.
  constexpr std::int32_t find(const Fragment& fragment) const {
    for (std::int32_t i = 0; i < count; ++i) {
      if (boxes[i].holds(fragment)) return i;
    }
    return -1;
  }

  /// A fragment with its slots numbered as in its edge box, if it lies in one: the first units()
  /// times kUnit of 64 are the box's, the others hold nothing.
  constexpr Fragment ordered(Fragment fragment) const {
    const std::int32_t edge = find(fragment);
    if (edge < 0) return fragment;
    fragment.log_h = boxes[edge].log_h;
    fragment.log_w = boxes[edge].log_w;
    return fragment;
  }
};

/// The boxes most worth having on a side: small ones first, videos' before lines'. `limited`:
/// lengths come at run time.
EdgeBoxes make_edge_boxes(const Side& side, bool limited);

}  // namespace vidsparse::cuda
