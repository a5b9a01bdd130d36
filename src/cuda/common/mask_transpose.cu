// The mask, key-major: a warp transposes blocks of 64 query tiles x 32 key tiles by ballots.

#include <algorithm>

#include "cuda/common/backward.hpp"

namespace vidsparse::cuda {
namespace {

constexpr int kWarps = 8;

struct TransposeParameters {
  const std::uint32_t* mask;  ///< 32-bit halves of words; strides count them
  std::int64_t batch_stride, head_stride, row_stride;
  std::uint64_t* transposed;  ///< [B, H, Nk, row_words]
  int heads;
  int query_tiles, key_tiles;
  int row_words;        ///< 64-bit words of a transposed row, tail included
  int key_words;        ///< 32-bit words that hold key tiles
  std::int64_t blocks;  ///< of all batch entries and heads
};

__global__ void __launch_bounds__(kWarps * 32)
    transpose_kernel(const __grid_constant__ TransposeParameters p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warps = std::int64_t{gridDim.x} * kWarps;
  // Neighbouring warps take neighbouring key words, which are neighbours in memory.
  for (std::int64_t block = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; block < p.blocks;
       block += warps) {
    const std::int64_t row = block / p.key_words;
    const int key_word = static_cast<int>(block - row * p.key_words);
    const std::int64_t plane = row / p.row_words;
    const int query_word = static_cast<int>(row - plane * p.row_words);
    const std::int64_t batch = plane / p.heads;
    const std::uint32_t* mask =
        p.mask + batch * p.batch_stride + (plane - batch * p.heads) * p.head_stride + key_word;
    std::uint32_t mine[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = query_word * 64 + half * 32 + lane;
      const std::uint32_t bits = query < p.query_tiles ? __ldg(mask + query * p.row_stride) : 0;
#pragma unroll
      for (int k = 0; k < 32; ++k) {
        const std::uint32_t column = __ballot_sync(~0U, bits >> k & 1);
        if (lane == k) mine[half] = column;
      }
    }
    const int key = key_word * 32 + lane;
    if (key >= p.key_tiles) continue;
    p.transposed[(plane * p.key_tiles + key) * p.row_words + query_word] =
        std::uint64_t{mine[1]} << 32 | mine[0];
  }
}

}  // namespace

void transpose_mask(const TileMaskView& mask, const TileMaskRef& transposed, cudaStream_t stream) {
  TransposeParameters p{};
  p.mask = reinterpret_cast<const std::uint32_t*>(mask.words);
  p.batch_stride = mask.batch_stride * 2;
  p.head_stride = mask.head_stride * 2;
  p.row_stride = mask.shape.row_words() * 2;
  p.transposed = transposed.words;
  p.heads = static_cast<int>(mask.shape.heads);
  p.query_tiles = static_cast<int>(mask.shape.query_tiles);
  p.key_tiles = static_cast<int>(mask.shape.key_tiles);
  p.row_words = static_cast<int>(transposed.shape.row_words());
  p.key_words = (p.key_tiles + 31) / 32;
  p.blocks = mask.shape.batch * mask.shape.heads * p.row_words * p.key_words;
  if (p.blocks == 0) return;
  const std::int64_t grid = std::min<std::int64_t>((p.blocks + kWarps - 1) / kWarps, 1 << 16);
  transpose_kernel<<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(p);
  check(cudaGetLastError(), "transpose");
}

}  // namespace vidsparse::cuda
