#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "cpu/kernels.hpp"
#include "vidsparse/parallel.hpp"

namespace vidsparse::cpu {

/// Runs work(unit, worker) for every unit in [0, units). Workers take units in ascending order from
/// a shared counter; `worker` is below `parallel.concurrency()` and names a scratch slot. Nothing
/// is allocated: the task captures one pointer.
template <class Work>
void for_each_unit(const ParallelFor& parallel, const Kernels& kernels, std::int64_t units,
                   Work&& work) {
  struct Shared {
    std::atomic<std::int64_t> next{0};
    std::int64_t units;
    const Kernels* kernels;
    std::remove_reference_t<Work>* work;
  } shared{{0}, units, &kernels, &work};
  const std::int64_t workers = units < parallel.concurrency() ? units : parallel.concurrency();
  parallel(workers, [all = &shared](std::int64_t worker) {
    if (all->kernels->enter != nullptr) all->kernels->enter();
    for (;;) {
      const std::int64_t unit = all->next.fetch_add(1, std::memory_order_relaxed);
      if (unit >= all->units) break;
      (*all->work)(unit, static_cast<int>(worker));
    }
    if (all->kernels->leave != nullptr) all->kernels->leave();
  });
}

}  // namespace vidsparse::cpu
