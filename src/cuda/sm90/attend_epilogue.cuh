#pragma once

#include <cstdint>

#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_plan.cuh"
#include "cuda/sm90/softmax.cuh"

namespace vidsparse::cuda::sm90 {

/// Two elements of a row as numbers.
template <class T>
__device__ inline float2 unpack(std::uint32_t word) {
  if constexpr (std::is_same_v<T, __half>) {
    __half2 pair;
    memcpy(&pair, &word, sizeof(word));
    return __half22float2(pair);
  } else {
    __nv_bfloat162 pair;
    memcpy(&pair, &word, sizeof(word));
    return __bfloat1622float2(pair);
  }
}

/// Four registers of each thread of a quad, exchanged so that thread t of it holds register t of
/// all four, in their order.
__device__ inline void transpose_quad(std::uint32_t (&x)[4], int t) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const bool upper = t & step;
      const std::uint32_t given = upper ? x[i] : x[i + step];
      const std::uint32_t got = __shfl_xor_sync(~0U, given, step);
      if (upper) {
        x[i] = got;
      } else {
        x[i + step] = got;
      }
    }
  }
}

/// The token of a slot that holds none but lies in memory: pads of packed tiles, and tokens past a
/// Plain segment's run-time length. -1 otherwise.
template <class T>
__device__ inline int pad_token(const AttendParameters<T>& p, const Fragment& rows, int slot) {
  const Raster& segment = p.query.segments[rows.segment];
  const bool line = p.query.segment_count > 0 && segment.line == 1;
  return line && rows.origin.w + slot < segment.grid.w ? rows.first_token + slot : -1;
}

/// Combines a query fragment's accumulators with the gated coarse output and writes out and lse.
/// Pads become 0 and -inf.
template <class T, int D>
__device__ void store_rows(const AttendParameters<T>& p, const Item& item, int tile,
                           const Fragment& rows, int warp, int lane, const Softmax& softmax,
                           const float (&output)[D / 2]) {
  const int quad = lane % 4;
  const float* coarse = p.oc ? p.oc.row(item.batch, tile, item.head) + quad * 2 : nullptr;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int slot = warp * 16 + lane / 4 + 8 * r;
    const int valid = rows.token(slot);
    const int token = valid >= 0 ? valid : pad_token(p, rows, slot);
    const float inverse = softmax.inverse(r);
    const bool weightless = softmax.empty(r);
    const std::uint32_t* gates = nullptr;
    if (p.gate && valid >= 0) {
      gates =
          reinterpret_cast<const std::uint32_t*>(p.gate.row(item.batch, token, item.head)) + quad;
    }
    T* to = token >= 0 ? p.out.row(item.batch, token, item.head) : nullptr;
#pragma unroll
    for (int b = 0; b < D / 32; ++b) {
      std::uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int block = 4 * b + j;  // of eight columns
        float2 value = {output[block * 4 + 2 * r] * inverse,
                        output[block * 4 + 2 * r + 1] * inverse};
        if (weightless) value = {0, 0};
        if (coarse != nullptr) {
          const float2 oc = *reinterpret_cast<const float2*>(coarse + block * 8);
          const float2 gate = gates != nullptr ? unpack<T>(__ldg(gates + block * 4))
                                               : make_float2(p.gate_value, p.gate_value);
          value.x = fmaf(gate.x, oc.x, value.x);
          value.y = fmaf(gate.y, oc.y, value.y);
        }
        x[j] = valid >= 0 ? pack<T>(value.x, value.y) : 0;
      }
      transpose_quad(x, quad);
      if (to != nullptr) {
        *reinterpret_cast<uint4*>(to + (4 * b + quad) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
    if (p.lse.data != nullptr && quad == 0 && token >= 0) {
      *p.lse.at(item.batch, item.head, token) = valid >= 0 ? softmax.log_sum_exp(r) : -INFINITY;
    }
  }
}

}  // namespace vidsparse::cuda::sm90
