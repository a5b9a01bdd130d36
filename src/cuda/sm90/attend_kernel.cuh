#pragma once

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/sm90/attend_config.hpp"
#include "cuda/sm90/attend_consumer.cuh"
#include "cuda/sm90/attend_loader.cuh"
#include "cuda/sm90/attend_parameters.hpp"
#include "cuda/sm90/attend_planner.cuh"

namespace vidsparse::cuda::sm90 {

/// What every thread of a block does, one block a multiprocessor: sets up the barriers, then works
/// as consumer, planner or loader. `Config` is its plan on one page.
template <class Consumer, class Config, class Parameters>
__device__ void run_block(const Parameters& parameters, char* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Config::kKeySlots; ++slot) {
      ptx::mbarrier_init(address + Config::kFullK + 8 * slot, 1);
      ptx::mbarrier_init(address + Config::kEmptyK + 8 * slot, Config::kWarps);
    }
    for (int slot = 0; slot < Config::kValueSlots; ++slot) {
      ptx::mbarrier_init(address + Config::kFullV + 8 * slot, 1);
      ptx::mbarrier_init(address + Config::kEmptyV + 8 * slot, Config::kWarps);
    }
    ptx::mbarrier_init(address + Config::kCredit, Config::kWarps);
    ptx::mbarrier_init(address + Config::kCredit + 8, Config::kWarps);
    ptx::fence_mbarrier_init();
  }
  // Queues, orders and the plan start as zeros.
  for (int i = Config::kQueues / 4 + threadIdx.x; i < Config::kSharedBytes / 4;
       i += Config::kThreads) {
    reinterpret_cast<std::uint32_t*>(shared)[i] = 0;
  }
  __syncthreads();

  // Shuffled, so that the compiler knows it is the same in a warp: descriptors depend on it.
  const int warpgroup = __shfl_sync(~0U, threadIdx.x / 128, 0);
  if (warpgroup == Config::kConsumers) {
    ptx::release_registers<Config::kProducerRegisters>();
    const int warp = __shfl_sync(~0U, threadIdx.x / 32, 0) - Config::kWarps;
    if (warp == 0) {
      Planner<Parameters, Config>(parameters, shared, address).run();
    } else if (threadIdx.x % 32 == 0) {
      if (warp == 1) Loader<Parameters, Config, false>(parameters, shared, address).run();
      if (warp == 2) Loader<Parameters, Config, true>(parameters, shared, address).run();
    }
  } else {
    ptx::claim_registers<Config::kConsumerRegisters>();
    Consumer(parameters, shared, address, warpgroup).run();
  }
}

/// attend_config.hpp is its plan.
template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    attend_kernel(const __grid_constant__ AttendParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  run_block<Consumer<T, Config>, Config>(parameters, shared);
}

}  // namespace vidsparse::cuda::sm90
