#include "cuda/common/context.hpp"
#include "cuda/common/fragment_table_fill.cuh"

namespace vidsparse::cuda {
namespace {

__global__ void __launch_bounds__(TableWork::kThreads)
    fragment_table_kernel(const __grid_constant__ TableWork work) {
  fill_part(work, blockIdx.x, gridDim.x);
}

}  // namespace

void fill_fragment_table(const TableWork& work, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(work.blocks());
  if (blocks == 0) return;
  fragment_table_kernel<<<blocks, TableWork::kThreads, 0, stream>>>(work);
  check(cudaGetLastError(), "fragment table");
}

}  // namespace vidsparse::cuda
