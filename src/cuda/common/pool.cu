// Means of tiles, one pass at the speed of memory. A warp takes one tile of one head: D / 8 lanes
// read a token's row by 16 bytes each, so 32 * 8 / D tokens go at once, eight such loads in flight.
// Neighbouring warps take neighbouring heads, which are neighbours in a [B, S, H, D] tensor.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "core/check.hpp"
#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kInFlight = 8;

template <class T>
struct Work {
  Tensor<const T> from;  ///< [B, S, heads, D]
  Tensor<float> to;      ///< [B, heads, N, D]
  int heads = 0;
  bool of_query = false;
  bool aligned_from = false;
  bool aligned_to = false;
};

template <class T>
struct PoolParameters {
  Side query;
  Side key;
  Work<T> work[3];
  int batch;
};

__device__ float2 widen(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
__device__ float2 widen(__half2 pair) { return __half22float2(pair); }
template <class T>
using PairOf = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

/// Eight elements of a row; `kAligned`: it starts at a multiple of 16 bytes.
template <bool kAligned, class T>
__device__ uint4 load_eight(const T* from) {
  if constexpr (kAligned) return __ldg(reinterpret_cast<const uint4*>(from));
  const auto* words = reinterpret_cast<const unsigned short*>(from);
  uint4 eight;
  eight.x = words[0] | static_cast<unsigned>(words[1]) << 16;
  eight.y = words[2] | static_cast<unsigned>(words[3]) << 16;
  eight.z = words[4] | static_cast<unsigned>(words[5]) << 16;
  eight.w = words[6] | static_cast<unsigned>(words[7]) << 16;
  return eight;
}

template <class T>
__device__ void add_eight(float (&sum)[8], const uint4& eight) {
  const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    PairOf<T> pair;
    memcpy(&pair, &words[i], sizeof(pair));
    const float2 wide = widen(pair);
    sum[2 * i] += wide.x;
    sum[2 * i + 1] += wide.y;
  }
}

/// Adds this lane's share of a fragment: tokens `first`, `first` + step, ... of its slots.
template <int kD, bool kAligned, class T>
__device__ void add_fragment(float (&sum)[8], const Fragment& fragment, const T* column,
                             std::int64_t token_stride, int first) {
  constexpr int kStep = 256 / kD;
  for (int base = first; base < kFragment; base += kStep * kInFlight) {
    uint4 eights[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int token = fragment.token(base + i * kStep);
      eights[i] = make_uint4(0, 0, 0, 0);  // zeros in either dtype: no slot, no share
      if (token >= 0) eights[i] = load_eight<kAligned>(column + token * token_stride);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) add_eight<T>(sum, eights[i]);
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(kWarps * 32)
    pool_kernel(const __grid_constant__ PoolParameters<T> parameters) {
  constexpr int kLanes = kD / 8;  // of one row
  const Work<T>& work = parameters.work[blockIdx.z];
  const Side& side = work.of_query ? parameters.query : parameters.key;
  const unsigned own = blockIdx.x * kWarps + threadIdx.x / 32;
  const int tile = static_cast<int>(own / static_cast<unsigned>(work.heads));
  const int head = static_cast<int>(own % static_cast<unsigned>(work.heads));
  if (tile >= side.tiles) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int part = lane % kLanes;
  for (int batch = static_cast<int>(blockIdx.y); batch < parameters.batch;
       batch += static_cast<int>(gridDim.y)) {
    const T* column = work.from.row(batch, 0, head) + part * 8;
    float sum[8] = {};
    int count = 0;
    for (int f = 0; f < side.fragments_per_tile; ++f) {
      const Fragment fragment = side.fragment(batch, tile, f);
      if (fragment.count() == 0) continue;
      count += fragment.count();
      if (work.aligned_from) {
        add_fragment<kD, true>(sum, fragment, column, work.from.row_stride, lane / kLanes);
      } else {
        add_fragment<kD, false>(sum, fragment, column, work.from.row_stride, lane / kLanes);
      }
    }
    const float share = count == 0 ? 0.0f : 1.0f / static_cast<float>(count);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int apart = kLanes; apart < 32; apart *= 2) {
        sum[i] += __shfl_xor_sync(0xFFFFFFFFU, sum[i], apart);
      }
      sum[i] *= share;
    }
    // The first two lanes that hold a part write a half each.
    const int half = lane / kLanes;
    if (half >= 2) continue;
    const float4 mean = half == 0 ? make_float4(sum[0], sum[1], sum[2], sum[3])
                                  : make_float4(sum[4], sum[5], sum[6], sum[7]);
    float* to = work.to.row(batch, tile, head) + part * 8 + half * 4;
    if (work.aligned_to) {
      *reinterpret_cast<float4*>(to) = mean;
    } else {
      to[0] = mean.x, to[1] = mean.y, to[2] = mean.z, to[3] = mean.w;
    }
  }
}

template <class T>
void launch(const Context& context, const PoolArgs& args, cudaStream_t stream) {
  PoolParameters<T> parameters;
  parameters.query = with_lengths(context.query, args.lengths.query);
  parameters.key = with_lengths(context.key, args.lengths.key);
  parameters.batch = static_cast<int>(context.batch());
  unsigned count = 0;
  std::int64_t blocks = 0;
  const auto add = [&](const TensorView& from, const TensorRef& to, bool of_query) {
    if (!to || to.elements() == 0) return;
    Work<T>& work = parameters.work[count++];
    work.from = by_token<const T>(from);
    work.to = by_head<float>(to);
    work.heads = static_cast<int>(from.shape[2]);
    work.of_query = of_query;
    work.aligned_from = rows_aligned(from);
    work.aligned_to = rows_aligned(to);
    const std::int64_t tiles = of_query ? parameters.query.tiles : parameters.key.tiles;
    blocks = std::max(blocks, core::ceil_div(tiles * work.heads, kWarps));
  };
  add(args.q, args.qc, true);
  add(args.k, args.kc, false);
  add(args.v, args.vc, false);
  if (count == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(std::min<std::int64_t>(context.batch(), 65535)), count);
  if (context.head_dim() == 64) {
    pool_kernel<T, 64><<<grid, kWarps * 32, 0, stream>>>(parameters);
  } else {
    pool_kernel<T, 128><<<grid, kWarps * 32, 0, stream>>>(parameters);
  }
  check(cudaGetLastError(), "pool");
}

}  // namespace

void pool(const Context& context, const PoolArgs& args, cudaStream_t stream) {
  if (context.dtype() == DType::f16) {
    launch<__half>(context, args, stream);
  } else {
    launch<__nv_bfloat16>(context, args, stream);
  }
}

}  // namespace vidsparse::cuda
