#pragma once

#include <string>
#include <vector>

#include "vidsparse/export.hpp"
#include "vidsparse/problem.hpp"

namespace vidsparse {

/// Where the tensors live.
struct Device {
  enum class Kind { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;

  std::string to_string() const {
    return kind == Kind::cpu ? "cpu" : "cuda:" + std::to_string(index);
  }
  bool operator==(const Device&) const = default;
};

/// The answer to "can this run here?"; a refusal always has its reason.
struct Verdict {
  bool ok = true;
  std::string reason;  ///< why not; when ok, what will be used ("avx512_bf16")

  static Verdict yes(std::string detail = {}) { return {true, std::move(detail)}; }
  static Verdict no(std::string why) { return {false, std::move(why)}; }
};

struct BackendInfo {
  std::string name;         ///< as VIDSPARSE_BACKEND and PlanOptions::backend take it
  std::string summary;      ///< one line
  bool on_request = false;  ///< never chosen unless named (the reference)
  Verdict verdict;
  Device::Kind kind = Device::Kind::cpu;  ///< of the devices it runs on
};

/// Every backend that was built, in order of preference, with its verdict on the machine (no
/// problem) or on the problem.
VIDSPARSE_API std::vector<BackendInfo> backends(const Device& device,
                                                const Problem* problem = nullptr);

/// The instruction sets of the CPU backend in order of preference, as VIDSPARSE_CPU_ISA takes them.
VIDSPARSE_API std::vector<BackendInfo> cpu_isas();

}  // namespace vidsparse
