#pragma once

#include <algorithm>
#include <cstdint>

#include "core/check.hpp"
#include "cuda/common/context.hpp"
#include "cuda/common/text_first.hpp"

namespace vidsparse::cuda::sm90 {

/// How a launch is cut into items, a batch entry, a head and as many fragments of the own side as a
/// block has consumers, and in which order blocks take them, each the next when it is done with
/// one. Items go head by head, so that blocks that run together read the same of the other side,
/// but those of all heads' text come first.
struct ItemPlan {
  TextFirst turns;  ///< of a head's fragments
  std::int32_t heads = 0;
  std::int64_t items_of_text = 0;   ///< of a head
  std::int64_t items_per_head = 0;  ///< of its others
  std::int64_t text_items = 0;      ///< of all heads
  std::int64_t items = 0;
  std::int64_t blocks = 0;

  ItemPlan() = default;

  ItemPlan(const Context& context, const TextFirst& order, std::int64_t head_count,
           std::int64_t consumers)
      : turns(order),
        heads(static_cast<std::int32_t>(head_count)),
        items_of_text(core::ceil_div(order.text(), consumers)),
        items_per_head(core::ceil_div(order.video, consumers)) {
    const std::int64_t planes = context.batch() * head_count;
    text_items = items_of_text * planes;
    items = text_items + items_per_head * planes;
    blocks = std::min<std::int64_t>(items, context.multiprocessors);
  }

  /// Into a kernel's parameters; `next`: a counter, zero.
  template <class Parameters>
  void put(Parameters& p, std::uint32_t* next) const {
    p.turns = turns;
    p.heads = heads;
    p.items_of_text = static_cast<std::int32_t>(items_of_text);
    p.items_per_head = static_cast<std::int32_t>(items_per_head);
    p.text_items = static_cast<std::int32_t>(text_items);
    p.items = static_cast<std::int32_t>(items);
    p.next = next;
  }
};

}  // namespace vidsparse::cuda::sm90
