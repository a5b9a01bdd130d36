#pragma once

#include "vidsparse/parallel.hpp"

namespace vidsparse::tools {

/// The threads this process may use: what the scheduler's affinity mask leaves, not what is built
/// into the machine.
int available_threads();

/// A ParallelFor over a work-stealing pool of `threads` threads, the caller among them; 0 for all
/// available. The pool lives as long as a copy of the result.
ParallelFor make_parallel_for(int threads = 0);

}  // namespace vidsparse::tools
