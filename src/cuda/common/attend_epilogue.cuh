#pragma once

#include <cstdint>

#include "cuda/common/attend_problem.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/common/softmax.cuh"

namespace vidsparse::cuda {

/// Combines the accumulators of 16 rows of a query fragment, those from `first_slot` on, with the
/// gated coarse output and writes out and lse. Pads become 0 and -inf.
template <class T, int D>
__device__ void store_rows(const AttendProblem<T>& p, int batch, int head, int tile,
                           const Fragment& rows, int first_slot, int lane, const Softmax& softmax,
                           const float (&output)[D / 2]) {
  constexpr int kBlocks = D / 16;  // of eight columns, two of them this thread's; half of all
  const int quad = lane % 4;
  const bool gated = static_cast<bool>(p.gate);
  int valid[2];
  int token[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int slot = first_slot + lane / 4 + 8 * r;
    valid[r] = rows.token(slot);
    token[r] = valid[r] >= 0 ? valid[r] : p.query.pad_token(rows, slot);
    if (p.lse.data != nullptr && quad == 0 && token[r] >= 0) {
      *p.lse.at(batch, head, token[r]) = valid[r] >= 0 ? softmax.log_sum_exp(r) : -INFINITY;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // All loads of a half first: one after the other their latencies would add up. Not those of
    // both: they would not fit the registers.
    asm volatile("" ::: "memory");
    float2 coarse[kBlocks] = {};
    std::uint32_t gates[2][kBlocks] = {};
    if (p.oc) {
      const auto* from =
          reinterpret_cast<const float2*>(p.oc.row(batch, tile, head)) + half * kBlocks * 4 + quad;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) coarse[block] = from[block * 4];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!gated || valid[r] < 0) continue;
      const auto* from = reinterpret_cast<const std::uint32_t*>(p.gate.row(batch, token[r], head)) +
                         half * kBlocks * 4 + quad;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) gates[r][block] = from[block * 4];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = softmax.inverse(r);
      T* to = token[r] >= 0 ? p.out.row(batch, token[r], head) + half * (D / 2) : nullptr;
#pragma unroll
      for (int b = 0; b < kBlocks / 4; ++b) {
        std::uint32_t x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int block = 4 * b + j;
          const int at = (half * kBlocks + block) * 4 + 2 * r;
          float2 value = {output[at] * inverse, output[at + 1] * inverse};
          if (softmax.empty(r)) value = {0, 0};
          if (p.oc) {
            const float2 gate =
                gated ? unpack<T>(gates[r][block]) : make_float2(p.gate_value, p.gate_value);
            value.x = fmaf(gate.x, coarse[block].x, value.x);
            value.y = fmaf(gate.y, coarse[block].y, value.y);
          }
          x[j] = valid[r] >= 0 ? pack<T>(value.x, value.y) : 0;
        }
        transpose_quad(x, quad);
        if (to != nullptr) {
          *reinterpret_cast<uint4*>(to + (4 * b + quad) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
        }
      }
    }
  }
}

}  // namespace vidsparse::cuda
