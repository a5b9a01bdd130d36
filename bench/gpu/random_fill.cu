#include "random_fill.hpp"

#include <cuda_bf16.h>

namespace {

/// splitmix64.
__device__ std::uint64_t scrambled(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

__global__ void fill_kernel(__nv_bfloat16* data, std::int64_t count, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::uint64_t bits = scrambled(scrambled(seed) + static_cast<std::uint64_t>(i));
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float v = static_cast<float>(bits & 0xFFFFFFU) * 0x1p-24f;
    data[i] = __float2bfloat16(sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}

__device__ std::uint64_t nanoseconds() {
  std::uint64_t now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void clock_kernel(std::uint64_t* result) {
  const std::uint64_t start = nanoseconds();
  const auto first = static_cast<std::uint64_t>(clock64());
  while (nanoseconds() - start < 100000) {
  }
  result[0] = static_cast<std::uint64_t>(clock64()) - first;
  result[1] = nanoseconds() - start;
}

}  // namespace

void random_fill_bf16(void* data, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  fill_kernel<<<1024, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(data), count, seed);
}

void measure_clock(std::uint64_t* cycles_and_nanoseconds, cudaStream_t stream) {
  clock_kernel<<<1, 1, 0, stream>>>(cycles_and_nanoseconds);
}
