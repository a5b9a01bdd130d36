// Threads for programs that reach the library through its C interface and have none to lend, such
// as bench_cpu.py: a vidsparse_parallel_for over oneTBB. The context is an arena of N threads.
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

#include <cstdint>

#if defined(_WIN32)
#define BENCH_EXPORT extern "C" __declspec(dllexport)
#else
#define BENCH_EXPORT extern "C" __attribute__((visibility("default")))
#endif

BENCH_EXPORT void* bench_threads_create(int threads) { return new tbb::task_arena(threads); }

BENCH_EXPORT void bench_threads_destroy(void* arena) {
  delete static_cast<tbb::task_arena*>(arena);
}

BENCH_EXPORT void bench_parallel_for(void* arena, std::int64_t count,
                                     void (*task)(void* arg, std::int64_t index), void* arg) {
  static_cast<tbb::task_arena*>(arena)->execute([&] {
    // One index a task: the library's own are coarse, and their lengths differ.
    tbb::parallel_for(
        tbb::blocked_range<std::int64_t>(0, count, 1),
        [&](const tbb::blocked_range<std::int64_t>& range) {
          for (std::int64_t index = range.begin(); index < range.end(); ++index) task(arg, index);
        },
        tbb::simple_partitioner());
  });
}
