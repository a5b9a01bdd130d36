#pragma once

#include <cstdint>
#include <functional>
#include <utility>

namespace vidsparse {

/// How the CPU backend gets its threads: the library links no thread library, the caller lends one.
/// `run(count, task)` calls task(i) for every i in [0, count) and returns when all are done; it may
/// run them in any order, at once or one after the other, and must be callable from several threads
/// when a plan is shared. Results do not depend on the threads. Tasks do not throw.
class ParallelFor {
 public:
  using Task = std::function<void(std::int64_t)>;
  using Run = std::function<void(std::int64_t count, const Task& task)>;

  /// The calling thread alone.
  ParallelFor() = default;

  /// `concurrency`: how many tasks can run at once; per-thread scratch in the workspace is counted
  /// by it.
  ParallelFor(int concurrency, Run run)
      : concurrency_(concurrency < 1 ? 1 : concurrency), run_(std::move(run)) {}

  int concurrency() const { return concurrency_; }

  void operator()(std::int64_t count, const Task& task) const {
    if (run_ && count > 1) {
      run_(count, task);
    } else {
      for (std::int64_t i = 0; i < count; ++i) task(i);
    }
  }

 private:
  int concurrency_ = 1;
  Run run_;
};

}  // namespace vidsparse
