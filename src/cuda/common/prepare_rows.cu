// What a backward's passes need of each query row, one pass at the speed of memory: delta, the
// norm, dgate, and by tile the gradient of oc. A warp takes one tile of one head as in pool.cu.

#include <algorithm>

#include "cuda/common/backward.hpp"
#include "cuda/common/row_words.cuh"

namespace vidsparse::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kInFlight = 4;
constexpr std::uint32_t kAll = 0xFFFFFFFFU;

template <class T>
struct PrepareParameters {
  Side query;
  EdgeBoxes edges;
  Tensor<const T> out, dout;
  Tensor<const T> gate;                                   ///< null: `gate_value` for all
  Tensor<T> dgate;                                        ///< optional
  Tensor<const float> lse, dlse, coarse_max, coarse_sum;  ///< [B, H, rows]; dlse optional
  Tensor<const float> oc;                                 ///< null: no pooled branch
  float gate_value = 0;
  float* rows;           ///< [B, H, fragments, 2, 64]
  KeyFragment* queries;  ///< [B, H, fragments]
  float* d_oc;           ///< [B, H, Nq, D]
  float4* coarse_rows;   ///< [B, H, Nq]
  int heads;
  int batch;
};

/// A warp at work on one tile of one head.
template <class T, int kD>
class PrepareTile {
 public:
  static constexpr int kLanes = kD / 8;      // of one row
  static constexpr int kRows = 32 / kLanes;  // at once

  __device__ PrepareTile(const PrepareParameters<T>& parameters, float* totals, int batch, int head,
                         int tile)
      : p_(parameters), totals_(totals), batch_(batch), head_(head), tile_(tile) {
    if (!p_.oc) return;
    const float* row = p_.oc.row(batch, tile, head) + part_ * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) coarse_[i] = row[i];
  }

  __device__ void run() {
    const Side& side = p_.query;
    const std::int64_t plane = std::int64_t{batch_} * p_.heads + head_;
    const std::int64_t first = (plane * side.tiles + tile_) * side.fragments_per_tile;
    int count = 0;
    for (int f = 0; f < side.fragments_per_tile; ++f) {
      const Fragment fragment = p_.edges.ordered(side.fragment(batch_, tile_, f));
      count += fragment.count();
      add_rows(fragment);
      __syncwarp();
      finish_rows(fragment, first + f);
      __syncwarp();
    }
    if (p_.oc) finish_tile(plane * side.tiles + tile_, count);
  }

 private:
  /// Their totals, dgate, and this lane's share of d_oc.
  __device__ void add_rows(const Fragment& fragment) {
    for (int base = lane_ / kLanes; base < kFragment; base += kRows * kInFlight) {
      uint4 dout[kInFlight], out[kInFlight], gate[kInFlight];
      int token[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        token[i] = fragment.token(base + i * kRows);
        dout[i] = out[i] = gate[i] = make_uint4(0, 0, 0, 0);
        if (token[i] < 0) continue;
        dout[i] = load(p_.dout, token[i]);
        out[i] = load(p_.out, token[i]);
        if (p_.gate) gate[i] = load(p_.gate, token[i]);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int slot = base + i * kRows;
        float total = add_row(dout[i], out[i], gate[i], token[i], fragment, slot);
#pragma unroll
        for (int apart = 1; apart < kLanes; apart *= 2) {
          total += __shfl_xor_sync(kAll, total, apart);
        }
        if (part_ == 0) totals_[slot] = total;
      }
    }
  }

  __device__ uint4 load(const Tensor<const T>& tensor, int token) const {
    return __ldg(reinterpret_cast<const uint4*>(tensor.row(batch_, token, head_)) + part_);
  }

  /// This lane's part of sum_d dout * (out - gate * oc). Rows without a token are zeros.
  __device__ float add_row(const uint4& dout, const uint4& out, const uint4& gate, int token,
                           const Fragment& fragment, int slot) {
    const std::uint32_t grads[4] = {dout.x, dout.y, dout.z, dout.w};
    const std::uint32_t results[4] = {out.x, out.y, out.z, out.w};
    const std::uint32_t gates[4] = {gate.x, gate.y, gate.z, gate.w};
    std::uint32_t d_gates[4] = {};
    float total = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 grad = unpack<T>(grads[i]);
      float2 result = unpack<T>(results[i]);
      if (p_.oc && token >= 0) {
        const float2 weight =
            p_.gate ? unpack<T>(gates[i]) : make_float2(p_.gate_value, p_.gate_value);
        result.x -= weight.x * coarse_[2 * i];
        result.y -= weight.y * coarse_[2 * i + 1];
        d_coarse_[2 * i] = fmaf(grad.x, weight.x, d_coarse_[2 * i]);
        d_coarse_[2 * i + 1] = fmaf(grad.y, weight.y, d_coarse_[2 * i + 1]);
        d_gates[i] = pack<T>(grad.x * coarse_[2 * i], grad.y * coarse_[2 * i + 1]);
      }
      total = fmaf(grad.x, result.x, total);
      total = fmaf(grad.y, result.y, total);
    }
    if (p_.dgate) {
      const int to = token >= 0 ? token : p_.query.pad_token(fragment, slot);
      if (to >= 0) {
        reinterpret_cast<uint4*>(p_.dgate.row(batch_, to, head_))[part_] =
            make_uint4(d_gates[0], d_gates[1], d_gates[2], d_gates[3]);
      }
    }
    return total;
  }

  /// Norm and delta of two slots a lane, and the fragment's entry of the table.
  __device__ void finish_rows(const Fragment& fragment, std::int64_t at) const {
    constexpr float kLog2E = 1.4426950408889634F;
    float* rows = p_.rows + at * (2 * kFragment);
    std::uint64_t alive = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = half * 32 + lane_;
      const int token = fragment.token(slot);
      // Where memory may hold anything, a pad must be cleared; so must a row without weight.
      float norm = p_.query.lengths == nullptr ? INFINITY : -INFINITY;
      float delta = 0;
      bool weighs = false;
      if (token >= 0) {
        const float lse = *p_.lse.row(batch_, token, head_);
        weighs = lse != -INFINITY;
        norm = weighs ? lse * kLog2E : -INFINITY;
        delta = totals_[slot];
        if (p_.dlse) delta -= *p_.dlse.row(batch_, token, head_);
      }
      rows[slot] = norm;
      rows[kFragment + slot] = weighs ? delta : 0;
      alive |= std::uint64_t{__ballot_sync(kAll, weighs)} << (32 * half);
    }
    if (lane_ != 0) return;
    KeyFragment entry;
    entry.valid = alive;
    if (alive != 0) {
      const std::int32_t edge = p_.edges.find(fragment);
      if (edge >= 0) {
        entry.valid = KeyFragment::edge(alive, p_.edges.boxes[edge].units());
      } else if (p_.edges.count > 0 &&
                 KeyFragment::is_edge(static_cast<std::uint32_t>(alive >> 32))) {
        entry.valid = 1;  // its last slot must not be taken for the mark of an edge box
      }
      entry.w = fragment.origin.w;
      entry.place = KeyFragment::pack(fragment.origin.h, fragment.origin.t,
                                      edge >= 0 ? Side::kMaxSegments + edge : fragment.segment);
    }
    p_.queries[at] = entry;
  }

  __device__ void finish_tile(std::int64_t at, int count) {
    float inner = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int apart = kLanes; apart < 32; apart *= 2) {
        d_coarse_[i] += __shfl_xor_sync(kAll, d_coarse_[i], apart);
      }
      inner = fmaf(d_coarse_[i], coarse_[i], inner);
    }
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2) inner += __shfl_xor_sync(kAll, inner, apart);
    // The first two lanes that hold a part write a half each.
    const int half = lane_ / kLanes;
    if (half < 2) {
      *reinterpret_cast<float4*>(p_.d_oc + at * kD + part_ * 8 + half * 4) =
          half == 0 ? make_float4(d_coarse_[0], d_coarse_[1], d_coarse_[2], d_coarse_[3])
                    : make_float4(d_coarse_[4], d_coarse_[5], d_coarse_[6], d_coarse_[7]);
    }
    if (lane_ != 0) return;
    const float sum = *p_.coarse_sum.row(batch_, tile_, head_);
    // A tile without tokens or a row without weight gives no gradient.
    p_.coarse_rows[at] =
        count == 0 || sum == 0
            ? make_float4(0, 0, 0, 0)
            : make_float4(*p_.coarse_max.row(batch_, tile_, head_), 1 / sum, inner, 0);
  }

  const PrepareParameters<T>& p_;
  float* totals_;  // [64] in shared memory
  int batch_;
  int head_;
  int tile_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int part_ = lane_ % kLanes;
  float coarse_[8] = {};
  float d_coarse_[8] = {};
};

template <class T, int kD>
__global__ void __launch_bounds__(kWarps * 32)
    prepare_rows_kernel(const __grid_constant__ PrepareParameters<T> p) {
  __shared__ float totals[kWarps][kFragment];
  const int strips = (p.heads + kWarps - 1) / kWarps;
  const int tile = static_cast<int>(blockIdx.x) / strips;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head = (static_cast<int>(blockIdx.x) - tile * strips) * kWarps + warp;
  if (head >= p.heads) return;
  for (int batch = static_cast<int>(blockIdx.y); batch < p.batch;
       batch += static_cast<int>(gridDim.y)) {
    PrepareTile<T, kD>(p, totals[warp], batch, head, tile).run();
  }
}

template <class T>
void launch(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
            cudaStream_t stream, const EdgeBoxes& edges) {
  PrepareParameters<T> p{};
  p.query = with_lengths(context.query, args.lengths.query);
  p.edges = edges;
  p.out = by_token<const T>(args.out);
  p.dout = by_token<const T>(args.dout);
  p.lse = by_head<const float>(args.lse);
  if (args.dlse) p.dlse = by_head<const float>(args.dlse);
  if (!args.gate.is_none()) {
    p.oc = by_head<const float>(args.oc);
    p.coarse_max = by_head<const float>(args.coarse_max);
    p.coarse_sum = by_head<const float>(args.coarse_sum);
    p.gate_value = args.gate.value();
    if (args.gate.is_tensor()) p.gate = by_token<const T>(args.gate.tensor());
    if (args.dgate) p.dgate = by_token<T>(args.dgate);
  }
  p.rows = parts.rows;
  p.queries = parts.queries;
  p.d_oc = static_cast<float*>(parts.d_oc.data);
  p.coarse_rows = static_cast<float4*>(parts.coarse_rows.data);
  p.heads = static_cast<int>(context.heads());
  p.batch = static_cast<int>(context.batch());
  const std::int64_t strips = (context.heads() + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(context.query.tiles * strips),
                  static_cast<unsigned>(std::min<std::int64_t>(context.batch(), 65535)));
  if (grid.x == 0 || grid.y == 0) return;
  if (context.head_dim() == 64) {
    prepare_rows_kernel<T, 64><<<grid, kWarps * 32, 0, stream>>>(p);
  } else {
    prepare_rows_kernel<T, 128><<<grid, kWarps * 32, 0, stream>>>(p);
  }
  check(cudaGetLastError(), "prepare");
}

}  // namespace

void prepare_rows(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                  cudaStream_t stream, const EdgeBoxes& edges) {
  if (context.dtype() == DType::f16) {
    launch<__half>(context, args, parts, stream, edges);
  } else {
    launch<__nv_bfloat16>(context, args, parts, stream, edges);
  }
}

}  // namespace vidsparse::cuda
