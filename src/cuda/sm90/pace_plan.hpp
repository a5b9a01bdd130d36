#pragma once

#include <algorithm>
#include <cstdint>

#include "core/check.hpp"
#include "cuda/common/context.hpp"
#include "cuda/sm90/attend_plan.cuh"
#include "cuda/sm90/item_plan.hpp"

namespace vidsparse::cuda::sm90 {

/// How the blocks of a launch keep pace (attend_pace.cuh); all 0: they run freely.
struct PacePlan {
  // As docs/kernels/sm90_forward.md measured them: shorter steps cost more waiting than they save.
  static constexpr std::int32_t kFragments = 128;
  static constexpr std::int32_t kSlack = 1;

  std::int32_t fragments = 0;  ///< of the side that is walked, in a step
  std::int64_t steps = 0;      ///< of an item
  std::int64_t arrivals = 0;   ///< counters, one a step of each wave

  PacePlan() = default;

  /// For blocks that walk `members` heads of `side` in each item.
  PacePlan(const Context& context, const Side& side, std::int64_t members, const ItemPlan& plan) {
    // Two tensors of a head, two bytes an element.
    const bool fits = 4 * std::int64_t{side.tokens} * context.head_dim() <= context.l2_bytes;
    // Blocks with much longer lists than others are not in step with them.
    if (fits || plan.items == 0 || plan.text_items > 0) return;
    const std::int64_t of_item = core::ceil_div(side.fragments(), kFragments) * members;
    const std::int64_t of_all = core::ceil_div(plan.items, plan.blocks) * of_item;
    if (of_all >= Order::kMaxPaceSteps) return;
    fragments = kFragments;
    steps = of_item;
    arrivals = of_all;
  }

  /// Into a kernel's parameters; `counters`: its `arrivals`, zeros.
  template <class Parameters>
  void put(Parameters& p, std::uint32_t* counters) const {
    if (arrivals > 0) p.arrivals = counters;
    p.pace_fragments = fragments;
    p.pace_steps = static_cast<std::int32_t>(steps);
    p.pace_slack = kSlack;
  }
};

}  // namespace vidsparse::cuda::sm90
