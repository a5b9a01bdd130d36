#include "pool.hpp"

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <cstddef>
#include <memory>

namespace vidsparse::tools {
namespace {

namespace tbb = oneapi::tbb;

struct Arena {
  explicit Arena(int threads)
      : limit(tbb::global_control::max_allowed_parallelism,
              static_cast<std::size_t>(std::max(threads, available_threads()))),
        arena(threads) {}

  tbb::global_control limit;  // lets an arena be wider than the machine, as tests ask for
  tbb::task_arena arena;
};

}  // namespace

int available_threads() { return tbb::info::default_concurrency(); }

ParallelFor make_parallel_for(int threads) {
  if (threads <= 0) threads = available_threads();
  if (threads == 1) return ParallelFor();
  const auto shared = std::make_shared<Arena>(threads);
  return ParallelFor(threads, [shared](std::int64_t count, const ParallelFor::Task& task) {
    shared->arena.execute([&] {
      // One index a task: they are few and heavy, and of uneven length where tiles are ragged.
      tbb::parallel_for(
          tbb::blocked_range<std::int64_t>(0, count, 1),
          [&](const tbb::blocked_range<std::int64_t>& range) {
            for (std::int64_t i = range.begin(); i != range.end(); ++i) task(i);
          },
          tbb::simple_partitioner());
    });
  });
}

}  // namespace vidsparse::tools
