#include "cuda/sm90/tensor_map.hpp"

#include <cudaTypedefs.h>

#include <algorithm>
#include <string>

#include "core/check.hpp"
#include "cuda/common/driver.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

constexpr std::int64_t kColumn = 64;  // elements of one step of J
constexpr std::int64_t kElement = 2;  // bytes

using Encode = PFN_cuTensorMapEncodeTiled_v12000;

Encode encoder() {
  static const auto found = reinterpret_cast<Encode>(driver_entry("cuTensorMapEncodeTiled", 12000));
  return found;
}

}  // namespace

void require_bulk_rows(const char* name, const TensorView& tensor) {
  if (tensor.elements() == 0) return;
  const auto require = [&](bool ok, const char* expected, const std::string& got) {
    if (!ok)
      throw Error(ErrorCode::unsupported, name,
                  std::string("expected ") + expected + ", got " + got);
  };
  require(reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0, "a 16-byte aligned address",
          "one that is not");
  const auto [batch, token, head, one] = tensor.strides;
  require(tensor.shape[1] <= 1 || (token % 8 == 0 && token > 0),
          "a token stride that is a positive multiple of 8 elements", std::to_string(token));
  require(tensor.shape[0] <= 1 || (batch % kColumn == 0 && batch >= 0),
          "a batch stride that is a multiple of 64 elements", std::to_string(batch));
  require(tensor.shape[2] <= 1 || (head % kColumn == 0 && head >= 0),
          "a head stride that is a multiple of 64 elements", std::to_string(head));
}

Verdict can_encode_tensor_maps() {
  if (encoder() != nullptr) return Verdict::yes();
  return Verdict::no("expected a driver of CUDA 12.0 or newer with cuTensorMapEncodeTiled");
}

TensorMaps make_tensor_maps(const char* name, const TensorView& tensor, const Side& side) {
  TensorMaps result{};
  if (tensor.elements() == 0) return result;
  require_bulk_rows(name, tensor);
  const auto [batch, given, head, one] = tensor.strides;
  const std::int64_t columns = tensor.shape[3] / kColumn;
  // A side of 1 may carry any stride.
  const std::int64_t token = tensor.shape[1] <= 1 ? tensor.shape[3] : given;
  result.batch_step = tensor.shape[0] <= 1 ? 0 : static_cast<std::int32_t>(batch / kColumn);
  result.head_step = tensor.shape[2] <= 1 ? 0 : static_cast<std::int32_t>(head / kColumn);
  const std::int64_t steps = (tensor.shape[0] - 1) * std::int64_t{result.batch_step} +
                             (tensor.shape[2] - 1) * std::int64_t{result.head_step} + columns;
  const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
  for (std::int32_t s = 0; s < side.segment_count; ++s) {
    const Raster& segment = side.segments[s];
    const Triple box_sides = side.boxes[segment.line].fragment();
    const auto* base =
        static_cast<const char*>(tensor.data) + segment.first_token * token * kElement;
    const cuuint64_t sides[5] = {
        kColumn, static_cast<cuuint64_t>(segment.grid.w), static_cast<cuuint64_t>(segment.grid.h),
        static_cast<cuuint64_t>(segment.grid.t), static_cast<cuuint64_t>(steps)};
    const cuuint64_t row = static_cast<cuuint64_t>(token) * kElement;
    const cuuint64_t strides[4] = {row, row * sides[1], row * sides[1] * sides[2],
                                   kColumn * kElement};
    const cuuint32_t box[5] = {
        static_cast<cuuint32_t>(kColumn), static_cast<cuuint32_t>(box_sides.w),
        static_cast<cuuint32_t>(box_sides.h), static_cast<cuuint32_t>(box_sides.t),
        static_cast<cuuint32_t>(columns)};
    const auto type = tensor.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const CUresult status =
        encoder()(&result.maps[s], type, 5, const_cast<char*>(base), sides, strides, box, ones,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status == CUDA_ERROR_INVALID_VALUE) {
      throw Error(ErrorCode::unsupported, name,
                  "expected strides a tensor map can hold (below 2^40 bytes), got " +
                      to_string(tensor) + " with a token stride of " + std::to_string(token));
    }
    if (status != CUDA_SUCCESS) {
      throw Error(ErrorCode::internal, name,
                  "expected a tensor map, got CUresult " + std::to_string(status));
    }
  }
  return result;
}

}  // namespace vidsparse::cuda::sm90
