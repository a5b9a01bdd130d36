// Means of tiles, one pass at the speed of memory. A warp takes one tile of one head: D / 8 lanes
// read a token's row by 16 bytes each, so 32 * 8 / D tokens go at once, eight such loads in flight.
// Neighbouring warps take neighbouring heads, which are neighbours in a [B, S, H, D] tensor.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "core/check.hpp"
#include "cuda/common/fragment_table_fill.cuh"
#include "cuda/common/split.cuh"
#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kInFlight = 8;

template <class T>
struct Work {
  Tensor<const T> from;  ///< [B, S, heads, D]
  Tensor<float> to;      ///< [B, heads, N, D], of words of split rows if `split`
  int heads = 0;
  bool of_query = false;
  bool aligned_from = false;
  bool aligned_to = false;
  bool split = false;  ///< pooled_planes.hpp
};

template <class T>
struct PoolParameters {
  Side query;
  Side key;
  Work<T> work[3];
  int batch;
  unsigned pool_blocks;  ///< along x; those that follow fill the table
  TableWork table;
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
  static_assert(kWarps * 32 == TableWork::kThreads);
  if (blockIdx.x >= parameters.pool_blocks) {
    const unsigned columns = gridDim.x - parameters.pool_blocks;
    const unsigned plane = blockIdx.z * gridDim.y + blockIdx.y;
    fill_part(parameters.table, plane * columns + blockIdx.x - parameters.pool_blocks,
              columns * gridDim.y * gridDim.z);
    return;
  }
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
    float* row = work.to.row(batch, tile, head);
    const int first = part * 8 + half * 4;
    float* to = row + first;
    if (work.split) {
      store_planes<kD>(reinterpret_cast<std::uint32_t*>(row), first, mean);
    } else if (work.aligned_to) {
      *reinterpret_cast<float4*>(to) = mean;
    } else {
      to[0] = mean.x, to[1] = mean.y, to[2] = mean.z, to[3] = mean.w;
    }
  }
}

/// What one launch does, gathered tensor by tensor.
template <class T>
class PoolLaunch {
 public:
  PoolLaunch(const Context& context, const PoolArgs& args, const TableWork& table)
      : context_(context) {
    parameters_.table = table;
    parameters_.query = with_lengths(context.query, args.lengths.query);
    parameters_.key = with_lengths(context.key, args.lengths.key);
    parameters_.batch = static_cast<int>(context.batch());
  }

  void add(const TensorView& from, const TensorRef& to, bool of_query) {
    if (!to || to.elements() == 0) return;
    Work<T>& work = add(from, of_query);
    work.to = by_head<float>(to);
    work.aligned_to = rows_aligned(to);
  }

  /// To split rows.
  void add(const TensorView& from, std::uint32_t* to, bool of_query) {
    const std::int64_t row = context_.head_dim();
    const std::int64_t head = row * side(of_query).tiles;
    if (to == nullptr || context_.batch() * from.shape[2] * head == 0) return;
    Work<T>& work = add(from, of_query);
    work.to = {reinterpret_cast<float*>(to), head * from.shape[2], row, head};
    work.split = true;
  }

  void run(cudaStream_t stream) {
    if (count_ == 0) return fill_fragment_table(parameters_.table, stream);
    parameters_.pool_blocks = static_cast<unsigned>(blocks_);
    const std::int64_t batches = std::min<std::int64_t>(context_.batch(), 65535);
    const std::int64_t columns = core::ceil_div(parameters_.table.blocks(), batches * count_);
    const dim3 grid(static_cast<unsigned>(blocks_ + columns), static_cast<unsigned>(batches),
                    count_);
    if (context_.head_dim() == 64) {
      pool_kernel<T, 64><<<grid, kWarps * 32, 0, stream>>>(parameters_);
    } else {
      pool_kernel<T, 128><<<grid, kWarps * 32, 0, stream>>>(parameters_);
    }
    check(cudaGetLastError(), "pool");
  }

 private:
  const Side& side(bool of_query) const { return of_query ? parameters_.query : parameters_.key; }

  Work<T>& add(const TensorView& from, bool of_query) {
    Work<T>& work = parameters_.work[count_++];
    work.from = by_token<const T>(from);
    work.heads = static_cast<int>(from.shape[2]);
    work.of_query = of_query;
    work.aligned_from = rows_aligned(from);
    blocks_ =
        std::max(blocks_, core::ceil_div(std::int64_t{side(of_query).tiles} * work.heads, kWarps));
    return work;
  }

  const Context& context_;
  PoolParameters<T> parameters_;
  unsigned count_ = 0;
  std::int64_t blocks_ = 0;
};

/// Pools to tensors or to split rows.
template <class Pooled>
void pool_to(const Context& context, const PoolArgs& args, const Pooled& qc, const Pooled& kc,
             const Pooled& vc, cudaStream_t stream, const TableWork& table) {
  const auto run = [&]<class T>(PoolLaunch<T> launch) {
    launch.add(args.q, qc, true);
    launch.add(args.k, kc, false);
    launch.add(args.v, vc, false);
    launch.run(stream);
  };
  context.dtype() == DType::f16 ? run(PoolLaunch<__half>(context, args, table))
                                : run(PoolLaunch<__nv_bfloat16>(context, args, table));
}

}  // namespace

void pool(const Context& context, const PoolArgs& args, cudaStream_t stream,
          const TableWork& table) {
  pool_to(context, args, args.qc, args.kc, args.vc, stream, table);
}

void pool_planes(const Context& context, const PoolArgs& args, const PooledPlanes& planes,
                 cudaStream_t stream, const TableWork& table) {
  pool_to(context, args, planes.qc, planes.kc, planes.vc, stream, table);
}

}  // namespace vidsparse::cuda
