#include "cpu/isa.hpp"

#include <cstdlib>
#include <string>

#include "vidsparse/error.hpp"

#if defined(VIDSPARSE_CPU_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace vidsparse::cpu {
namespace {

constexpr const char* kVariable = "VIDSPARSE_CPU_ISA";

#if defined(VIDSPARSE_CPU_X86)

struct CpuidWords {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
};

/// Zeros where the processor has no such leaf.
CpuidWords cpuid(unsigned leaf, unsigned subleaf) {
  CpuidWords w;
#if defined(_MSC_VER)
  int words[4];
  __cpuid(words, 0);
  if (leaf > static_cast<unsigned>(words[0])) return w;
  __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
  w = {static_cast<unsigned>(words[0]), static_cast<unsigned>(words[1]),
       static_cast<unsigned>(words[2]), static_cast<unsigned>(words[3])};
#else
  if (__get_cpuid_count(leaf, subleaf, &w.eax, &w.ebx, &w.ecx, &w.edx) == 0) return {};
#endif
  return w;
}

/// Which register states the operating system saves.
unsigned long long saved_states() {
  constexpr unsigned kOsxsave = 1U << 27;
  if ((cpuid(1, 0).ecx & kOsxsave) == 0) return 0;
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
#endif
}

constexpr bool has(unsigned word, int bit) { return (word >> bit & 1U) != 0; }

Verdict check_avx2() {
  const CpuidWords one = cpuid(1, 0);
  if (!has(cpuid(7, 0).ebx, 5)) return Verdict::no("the processor has no AVX2");
  if (!has(one.ecx, 12)) return Verdict::no("the processor has no FMA");
  if (!has(one.ecx, 29)) return Verdict::no("the processor has no F16C");
  if ((saved_states() & 0x6) != 0x6) {
    return Verdict::no("the operating system does not save AVX registers");
  }
  return Verdict::yes();
}

Verdict check_avx512() {
  const Verdict avx2 = check_avx2();
  if (!avx2.ok) return avx2;
  const unsigned ebx = cpuid(7, 0).ebx;
  if (!has(ebx, 16)) return Verdict::no("the processor has no AVX-512");
  if (!has(ebx, 17) || !has(ebx, 30) || !has(ebx, 31)) {
    return Verdict::no("the processor has AVX-512 F but not DQ, BW and VL");
  }
  if ((saved_states() & 0xe6) != 0xe6) {
    return Verdict::no("the operating system does not save AVX-512 registers");
  }
  return Verdict::yes();
}

Verdict check_avx512_bf16() {
  const Verdict avx512 = check_avx512();
  if (!avx512.ok) return avx512;
  if (!has(cpuid(7, 1).eax, 5)) return Verdict::no("the processor has no AVX512-BF16");
  return Verdict::yes();
}

Verdict check_amx() {
  const unsigned edx = cpuid(7, 0).edx;
  if (!has(edx, 24) || !has(edx, 22)) return Verdict::no("the processor has no AMX-BF16");
  const Verdict bf16 = check_avx512_bf16();
  if (!bf16.ok) return bf16;
  if ((saved_states() & 0x60000) != 0x60000) {
    return Verdict::no("the operating system does not save AMX tiles");
  }
#if defined(__linux__)
  // Tile data is granted on request, once for the whole process.
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    return Verdict::no("the kernel refused permission for AMX tiles");
  }
#endif
  return Verdict::yes();
}

bool is_intel() { return cpuid(0, 0).ebx == 0x756e6547U; }  // "Genu"

/// A table is asked for only where its set can run: the function that gives it is compiled with
/// that set's flags too, and may use what the machine lacks to fill it.
Isa isa_of(const char* name, const char* summary, const Verdict& verdict,
           const Kernels& (*table)()) {
  return {name, summary, verdict, verdict.ok ? &table() : nullptr};
}

#endif  // VIDSPARSE_CPU_X86

}  // namespace

std::vector<Isa> isas() {
  std::vector<Isa> list;
#if defined(VIDSPARSE_CPU_X86)
  const Isa avx512 = isa_of("avx512", "AVX-512 F, DQ, BW, VL", check_avx512(), avx512_kernels);
  const Isa bf16 = isa_of("avx512_bf16", "AVX-512 with its bf16 dot product", check_avx512_bf16(),
                          avx512_bf16_kernels);
  list.push_back(isa_of("amx", "AMX bf16 tiles and AVX-512", check_amx(), amx_kernels));
  list.push_back(is_intel() ? avx512 : bf16);
  list.push_back(is_intel() ? bf16 : avx512);
  list.push_back(isa_of("avx2", "AVX2, FMA, F16C", check_avx2(), avx2_kernels));
#else
  for (const char* name : {"amx", "avx512_bf16", "avx512", "avx2"}) {
    list.push_back({name, "x86-64 only", Verdict::no("not built for this architecture"), nullptr});
  }
#endif
  list.push_back({"scalar", "plain C++", Verdict::yes(), &scalar_kernels()});
  return list;
}

const Kernels& choose_kernels() {
  const std::vector<Isa> list = isas();
  const char* forced = std::getenv(kVariable);
  if (forced == nullptr || *forced == '\0') {
    for (const Isa& isa : list) {
      if (isa.verdict.ok) return *isa.kernels;
    }
  }
  const std::string wanted = forced == nullptr ? "" : forced;
  std::string names;
  for (const Isa& isa : list) {
    if (wanted == isa.name) {
      if (isa.verdict.ok) return *isa.kernels;
      throw Error(ErrorCode::unsupported, kVariable,
                  "expected an instruction set of this machine, got " + wanted + " (" +
                      isa.verdict.reason + ")");
    }
    names += names.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw Error(ErrorCode::unsupported, kVariable, "expected one of " + names + ", got " + wanted);
}

}  // namespace vidsparse::cpu
