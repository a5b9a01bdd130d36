#pragma once

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "device/device_memory.hpp"
#include "reference/check.hpp"
#include "support/random_problem.hpp"

namespace vidsparse::testing {

/// What a test runs on; `isa`, or the shape of sm80's kernels, is empty where there is no choice.
struct Target {
  std::string backend;
  std::string isa;
  Verdict verdict;
  Device device = {};
  Limits limits = {};
};

void PrintTo(const Target& target, std::ostream* stream);
/// "cpu_avx2", for the names of tests.
std::string name_of(const Target& target);

/// Every backend that was built, the CPU once for each instruction set, GPUs' on the first device.
std::vector<Target> targets();

/// Makes plans use the target's instruction set from now on.
void force(const Target& target);

/// The outputs of all calls on one problem, each in poisoned memory.
struct Results {
  PoisonedTensor qc, kc, vc, oc, coarse_max, coarse_sum, out, lse, out_alone, dgate;
  Poisoned mask_words, gradients, dk_memory, dv_memory;
  TileMaskRef mask;
  TensorRef dq, dk, dv;

  explicit Results(const RandomProblem& problem);

  std::vector<std::pair<const char*, Poisoned*>> memory();
};

/// Copies all that a problem's calls read or write to the device of `memory`.
void copy_to_device(const RandomProblem& problem, Results& results, tools::DeviceMemory& memory);

/// Runs everything a problem is for on the target that is forced, each call with a poisoned
/// workspace of exactly the bytes it asks for.
/// Memory is copied to the target's device and, with outputs, back.
void run(const RandomProblem& problem, const Target& target, int threads, Results& results);

/// Holds the results of a run against the reference's, as the spec says; on fewer than 64 rows that
/// differ the bounds that plain's error sets are widened.
std::vector<reference::Report> judge(const RandomProblem& problem, Results& results);

}  // namespace vidsparse::testing
