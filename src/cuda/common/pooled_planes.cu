#include "cuda/common/pooled_planes.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "cuda/common/split.cuh"

namespace vidsparse::cuda {
namespace {

constexpr int kThreads = 256;

struct SplitWork {
  Tensor<const float> from;  ///< [B, heads, N, D]
  std::uint32_t* to = nullptr;
  int heads = 0;
  int tiles = 0;
  bool of_keys = false;  ///< whose empty tiles may hold anything
};

struct SplitParameters {
  Side key;
  SplitWork work[3];
  int batch;
};

/// A thread takes four numbers of a row.
template <int kD>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const __grid_constant__ SplitParameters parameters) {
  const SplitWork& work = parameters.work[blockIdx.y];
  const std::int64_t rows = std::int64_t{parameters.batch} * work.heads * work.tiles;
  const std::int64_t own = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = own / (kD / 4);
  const int column = static_cast<int>(own % (kD / 4)) * 4;
  if (row >= rows) return;
  const auto tile = static_cast<int>(row % work.tiles);
  const std::int64_t plane = row / work.tiles;
  const auto batch = static_cast<int>(plane / work.heads);
  const auto head = static_cast<int>(plane % work.heads);
  float4 four = make_float4(0, 0, 0, 0);
  if (!work.of_keys || parameters.key.valid_tokens(batch, tile) > 0) {
    const float* from = work.from.row(batch, tile, head) + column;
    four = make_float4(from[0], from[1], from[2], from[3]);
  }
  store_planes<kD>(work.to + row * kD, column, four);
}

}  // namespace

PooledPlanes take_planes(core::Arena& arena, const Context& context, bool with_values) {
  const auto plane = [&](std::int64_t heads, int tiles) {
    return arena.take<std::uint32_t>(context.batch() * heads * tiles * context.head_dim());
  };
  PooledPlanes planes;
  planes.qc = plane(context.heads(), context.query.tiles);
  planes.kc = plane(context.key_heads(), context.key.tiles);
  if (with_values) planes.vc = plane(context.key_heads(), context.key.tiles);
  return planes;
}

void split_pooled(const Context& context, const SelectArgs& args, const PooledPlanes& planes,
                  cudaStream_t stream) {
  SplitParameters parameters;
  parameters.key = with_lengths(context.key, args.lengths.key);
  parameters.batch = static_cast<int>(context.batch());
  unsigned count = 0;
  std::int64_t most = 0;
  const auto add = [&](const TensorView& from, std::uint32_t* to, bool of_keys) {
    if (!from || from.elements() == 0) return;
    parameters.work[count++] = {by_head<const float>(from), to, static_cast<int>(from.shape[1]),
                                static_cast<int>(from.shape[2]), of_keys};
    most = std::max(most, from.elements());
  };
  add(args.qc, planes.qc, false);
  add(args.kc, planes.kc, true);
  if (planes.vc != nullptr) add(args.vc, planes.vc, true);
  if (count == 0) return;
  const dim3 blocks(static_cast<unsigned>(core::ceil_div(most, 4 * kThreads)), count);
  if (context.head_dim() == 64) {
    split_kernel<64><<<blocks, kThreads, 0, stream>>>(parameters);
  } else {
    split_kernel<128><<<blocks, kThreads, 0, stream>>>(parameters);
  }
  check(cudaGetLastError(), "split");
}

}  // namespace vidsparse::cuda
