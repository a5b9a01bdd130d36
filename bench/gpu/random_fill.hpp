#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Fills `count` bf16 elements on the device with normal numbers of the seed.
void random_fill_bf16(void* data, std::int64_t count, std::uint64_t seed, cudaStream_t stream);

/// Keeps one thread block busy and stores how many SM cycles pass in how many nanoseconds.
void measure_clock(std::uint64_t* cycles_and_nanoseconds, cudaStream_t stream);
