#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/common/edge_box.cuh"
#include "cuda/common/geometry.cuh"
#include "vidsparse/backend.hpp"
#include "vidsparse/tensor.hpp"

namespace vidsparse::cuda::sm90 {

/// How the bulk copy engine reads one [B, S, heads, D] tensor in place: for each segment a map of
/// five dimensions (64 elements, W, H, T, J). J steps by 64 elements through all of memory, so that
/// one load of the box {64, fragment, D / 64} serves any batch entry and head. Edge boxes have maps
/// of their own, {64, box, 1}.
struct TensorMaps {
  CUtensorMap maps[Side::kMaxSegments + EdgeBoxes::kMost];  ///< by segment, then by edge box
  std::int32_t batch_step = 0;  ///< what a batch entry and a head add to J
  std::int32_t head_step = 0;

  /// J of a batch entry and head.
  constexpr std::int32_t column(std::int32_t batch, std::int32_t head) const {
    return batch * batch_step + head * head_step;
  }
};

/// Throws Error naming `name` when the tensor cannot be read so: a base that is not 16-byte
/// aligned, a token stride that is not a positive multiple of 8 elements, batch or head strides
/// that are not multiples of 64, negative ones.
void require_bulk_rows(const char* name, const TensorView& tensor);

/// Throws Error naming `name` as require_bulk_rows does, and for spans of 2^40 bytes and more.
TensorMaps make_tensor_maps(const char* name, const TensorView& tensor, const Side& side,
                            const EdgeBoxes& edges = {});

/// Whether the driver has what make_tensor_maps needs; looked up once.
Verdict can_encode_tensor_maps();

}  // namespace vidsparse::cuda::sm90
