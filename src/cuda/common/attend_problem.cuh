#pragma once

#include <cstdint>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/geometry.cuh"
#include "cuda/common/tensor.cuh"

namespace vidsparse::cuda {

/// Strided [B, H, rows] of fp32.
struct RowValues {
  float* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;

  constexpr float* at(std::int64_t batch, std::int64_t head, std::int64_t row) const {
    return data + batch * batch_stride + head * head_stride + row * row_stride;
  }
};

/// What an attend kernel of any architecture is given; each adds how it reads K and V.
template <class T>
struct AttendProblem {
  Side query;
  Tensor<const T> q;
  Tensor<T> out;
  Tensor<const T> gate;    ///< null: `gate_value` for all
  Tensor<const float> oc;  ///< [B, H, Nq, D]; null: no pooled branch
  RowValues lse;           ///< null: not wanted
  float gate_value = 0;
  float scale_log2 = 0;  ///< |scale| * log2(e), above 0
  // What makes a query pair that of |scale|: its signs for a scale below 0, zeros for one of 0.
  std::uint32_t query_and = ~0U;
  std::uint32_t query_xor = 0;

  const std::uint32_t* mask = nullptr;  ///< 32-bit halves of the bitmap's words
  std::int64_t mask_row = 0;            ///< strides in such halves
  std::int64_t mask_head = 0;
  std::int64_t mask_batch = 0;

  const KeyFragment* table = nullptr;  ///< [batches, key fragments]
  std::int64_t table_batch = 0;        ///< entries from one batch entry to the next, 0: shared
  std::int32_t key_fragments = 0;
  Divider fragments_per_tile;

  std::int32_t heads = 0;
  std::int32_t group = 1;  ///< query heads that share a key head
};

}  // namespace vidsparse::cuda
