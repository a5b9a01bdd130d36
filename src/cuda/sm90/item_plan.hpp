#pragma once

#include <algorithm>
#include <cstdint>

#include "core/check.hpp"
#include "cuda/common/context.hpp"

namespace vidsparse::cuda::sm90 {

/// How a launch is cut into items, a batch entry, a head and as many fragments of the own side as a
/// block has consumers, and in which order blocks take them, each the next when it is done with
/// one. Items go head by head, so that blocks that run together read the same of the other side.
/// The first fragments of a head may have far longer lists than others, as text has, which attends
/// to everything: they are items of their own, and those of all heads come first, or a block would
/// begin with one when the others end.
struct ItemPlan {
  std::int32_t fragments = 0;        ///< of a head
  std::int32_t first_fragments = 0;  ///< those with long lists
  std::int32_t heads = 0;
  std::int64_t items_of_first = 0;  ///< items of a head's first fragments
  std::int64_t items_per_head = 0;  ///< of its others
  std::int64_t first_items = 0;     ///< of all heads' first fragments
  std::int64_t items = 0;
  std::int64_t blocks = 0;

  ItemPlan() = default;

  ItemPlan(const Context& context, const Side& side, std::int64_t head_count,
           std::int64_t first_tiles, std::int64_t consumers)
      : fragments(side.fragments()),
        first_fragments(static_cast<std::int32_t>(first_tiles * side.fragments_per_tile)),
        heads(static_cast<std::int32_t>(head_count)),
        items_of_first(core::ceil_div(first_fragments, consumers)),
        items_per_head(core::ceil_div(fragments - first_fragments, consumers)) {
    const std::int64_t planes = context.batch() * head_count;
    first_items = items_of_first * planes;
    items = first_items + items_per_head * planes;
    blocks = std::min<std::int64_t>(items, context.multiprocessors);
  }

  /// Into a kernel's parameters; `next`: a counter, zero.
  template <class Parameters>
  void put(Parameters& p, std::uint32_t* next) const {
    p.query_fragments = fragments;
    p.heads = heads;
    p.first_fragments = first_fragments;
    p.items_of_first = static_cast<std::int32_t>(items_of_first);
    p.items_per_head = static_cast<std::int32_t>(items_per_head);
    p.first_items = static_cast<std::int32_t>(first_items);
    p.items = static_cast<std::int32_t>(items);
    p.next = next;
  }
};

}  // namespace vidsparse::cuda::sm90
