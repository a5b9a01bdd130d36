#include "tensors.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "errors.hpp"

namespace vidsparse::torch_ops {
namespace {

using torch::headeronly::ScalarType;

DType dtype_of(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Int:
      return DType::i32;
    case ScalarType::Long:
      return DType::i64;
    default:
      refuse(name, "a dtype the library knows", "scalar type " + std::to_string(int(type)));
  }
}

torch::stable::Tensor empty_on(const torch::stable::Tensor& like, std::int64_t rank,
                               const std::int64_t* sizes, const std::int64_t* strides,
                               std::int32_t dtype) {
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides, dtype, device_type, device_index, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace

torch::stable::Tensor empty(const torch::stable::Tensor& like,
                            std::initializer_list<std::int64_t> sizes, std::int32_t dtype) {
  std::array<std::int64_t, 4> strides{};
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes.begin()[i], 1);
  }
  return empty_on(like, static_cast<std::int64_t>(sizes.size()), sizes.begin(), strides.data(),
                  dtype);
}

torch::stable::Tensor empty_like(const torch::stable::Tensor& like,
                                 const std::array<std::int64_t, 4>& strides) {
  if (like.dim() != 4) refuse("q", "4 dimensions", std::to_string(like.dim()));
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty_on(like, 4, like.sizes().data(), strides.data(), dtype);
}

TensorRef view(const char* name, const torch::stable::Tensor& tensor) {
  const std::int64_t rank = tensor.dim();
  if (rank < 1 || rank > 4) refuse(name, "1 to 4 dimensions", std::to_string(rank));
  TensorRef ref;
  ref.data = tensor.data_ptr();
  ref.dtype = dtype_of(name, tensor.scalar_type());
  ref.rank = static_cast<int>(rank);
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  for (std::size_t i = 0; i < static_cast<std::size_t>(rank); ++i) {
    ref.shape[i] = sizes[i];
    ref.strides[i] = strides[i];
  }
  return ref;
}

TensorRef view(const char* name, const OptionalTensor& tensor) {
  return tensor ? view(name, *tensor) : TensorRef{};
}

TileMaskRef mask_view(const char* name, const torch::stable::Tensor& words,
                      std::int64_t key_tiles) {
  const TensorRef ref = view(name, words);
  const MaskShape shape{ref.shape[0], ref.shape[1], ref.shape[2], key_tiles};
  const bool dense_rows = (ref.shape[3] == 1 || ref.strides[3] == 1) &&
                          (ref.shape[2] == 1 || ref.strides[2] == ref.shape[3]);
  if (ref.rank != 4 || ref.dtype != DType::i64 || ref.shape[3] != shape.row_words() ||
      (ref.elements() > 0 && !dense_rows)) {
    refuse(name,
           "a bitmap int64 [B, H, Nq, " + std::to_string(shape.row_words()) + "], dense in rows",
           to_string(TensorView(ref)));
  }
  TileMaskRef mask(static_cast<std::uint64_t*>(ref.data), shape);
  mask.batch_stride = ref.strides[0];
  mask.head_stride = ref.strides[1];
  return mask;
}

TileMaskRef mask_view(const char* name, const OptionalTensor& words, std::int64_t key_tiles) {
  return words ? mask_view(name, *words, key_tiles) : TileMaskRef{};
}

}  // namespace vidsparse::torch_ops
