#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.hpp"
#include "vidsparse/backend.hpp"

namespace vidsparse::cpu {

/// An instruction set, and whether this machine and operating system have it.
struct Isa {
  const char* name;
  const char* summary;
  Verdict verdict;
  const Kernels* kernels;  ///< null where it cannot run
};

/// All of them, in order of preference on this machine. "amx" comes first; the bf16 dot product of
/// AVX-512 comes before plain AVX-512 except on Intel cores, where it does half the work of the
/// fp32 instruction a cycle (measured on a 4th/5th generation Xeon: 86 against 175 GFLOP/s).
std::vector<Isa> isas();

/// The first that can run, or the one VIDSPARSE_CPU_ISA names; the variable is read at every call.
/// Throws Error when it names none, or one that cannot run here.
const Kernels& choose_kernels();

// The tables, one per ISA file: these functions, and those of the tables, run only where the ISA
// is.
const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
const Kernels& amx_kernels();

}  // namespace vidsparse::cpu
