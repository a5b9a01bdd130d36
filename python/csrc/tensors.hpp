#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "vidsparse/problem.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse::torch_ops {

using OptionalTensor = std::optional<torch::stable::Tensor>;

/// Views of torch tensors; they live as long as the tensor. A missing tensor is an absent view.
/// `name` is the argument's, for the error where dtype or rank are none of ours.
TensorRef view(const char* name, const torch::stable::Tensor& tensor);
TensorRef view(const char* name, const OptionalTensor& tensor);

/// A bitmap from int64 [B, H, Nq, W]; B and H may have stride 0.
TileMaskRef mask_view(const char* name, const torch::stable::Tensor& words, std::int64_t key_tiles);
TileMaskRef mask_view(const char* name, const OptionalTensor& words, std::int64_t key_tiles);

}  // namespace vidsparse::torch_ops
