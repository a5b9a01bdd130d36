#pragma once

#include <cstdint>

// Four 8x8 matrices of 16-bit elements from shared memory into a warp's registers, sm_75 and later.
// Lane l gives the address of row l % 8 of matrix l / 8. PTX ISA, "ldmatrix".

namespace vidsparse::ptx {

/// Register i: row lane / 4, columns 2 * (lane % 4) and the next, of matrix i.
__device__ inline void load_matrices(std::uint32_t (&matrices)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

/// The same of the transposed matrices.
__device__ inline void load_matrices_transposed(std::uint32_t (&matrices)[4],
                                                std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

}  // namespace vidsparse::ptx
