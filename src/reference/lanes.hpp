#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/backend.hpp"
#include "core/workspace.hpp"

namespace vidsparse::reference {

// Work is shared out by (batch, key head): all that is summed belongs to one of them, so results do
// not depend on the number of threads. A lane is one thread's share of the workspace.

inline std::int64_t lane_count(const core::Setting& setting) {
  const std::int64_t heads = setting.problem.batch * setting.problem.key_heads();
  return std::max<std::int64_t>(1, std::min<std::int64_t>(heads, setting.parallel.concurrency()));
}

/// Bytes of `Lane(Arena&, const Setting&)` for every lane.
template <class Lane>
std::size_t lanes_bytes(const core::Setting& setting) {
  core::Arena counter(nullptr);
  Lane{counter, setting};
  return counter.used() * static_cast<std::size_t>(lane_count(setting));
}

/// Calls work(lane, batch, key_head) for every key head, lanes side by side.
template <class Lane, class Work>
void for_each_key_head(const core::Setting& setting, Workspace workspace, Work&& work) {
  struct Shared {
    const core::Setting& setting;
    std::byte* base;
    std::size_t lane_bytes;
    std::int64_t lanes;
    Work& work;
  } shared{setting, static_cast<std::byte*>(workspace.data), 0, lane_count(setting), work};
  shared.lane_bytes = lanes_bytes<Lane>(setting) / static_cast<std::size_t>(shared.lanes);
  setting.parallel(shared.lanes, [all = &shared](std::int64_t index) {
    core::Arena arena(all->base + static_cast<std::size_t>(index) * all->lane_bytes);
    const Lane lane(arena, all->setting);
    const std::int64_t key_heads = all->setting.problem.key_heads();
    const std::int64_t units = all->setting.problem.batch * key_heads;
    for (std::int64_t unit = index; unit < units; unit += all->lanes) {
      all->work(lane, unit / key_heads, unit % key_heads);
    }
  });
}

}  // namespace vidsparse::reference
