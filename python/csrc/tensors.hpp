#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "vidsparse/problem.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_mask.hpp"

namespace vidsparse::torch_ops {

using OptionalTensor = std::optional<torch::stable::Tensor>;

/// An uninitialised dense tensor on the device of `like`; `dtype` is aoti_torch_dtype_*().
/// torch::stable::new_empty does the same by way of the dispatcher, which takes the host longer.
torch::stable::Tensor empty(const torch::stable::Tensor& like,
                            std::initializer_list<std::int64_t> sizes, std::int32_t dtype);

/// An uninitialised tensor of the shape, dtype and device of `like`, which has 4 dimensions.
torch::stable::Tensor empty_like(const torch::stable::Tensor& like,
                                 const std::array<std::int64_t, 4>& strides);

/// Views of torch tensors; they live as long as the tensor. A missing tensor is an absent view.
/// `name` is the argument's, for the error where dtype or rank are none of ours.
TensorRef view(const char* name, const torch::stable::Tensor& tensor);
TensorRef view(const char* name, const OptionalTensor& tensor);

/// A bitmap from int64 [B, H, Nq, W]; B and H may have stride 0.
TileMaskRef mask_view(const char* name, const torch::stable::Tensor& words, std::int64_t key_tiles);
TileMaskRef mask_view(const char* name, const OptionalTensor& words, std::int64_t key_tiles);

}  // namespace vidsparse::torch_ops
