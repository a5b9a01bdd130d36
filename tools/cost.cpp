#include "cost.hpp"

#include <algorithm>

#include "buffers.hpp"

namespace vidsparse::tools {
namespace {

/// Tokens of plain segments.
double plain_tokens_of(const Sequence& sequence) {
  double tokens = 0;
  for (const Segment& segment : sequence.segments()) {
    if (const auto* plain = std::get_if<Plain>(&segment)) {
      tokens += static_cast<double>(plain->length);
    }
  }
  return tokens;
}

}  // namespace

Flops flops_of(const Plan& plan, std::int64_t tiles_kept, PrefixMode mode) {
  const Problem& problem = plan.problem();
  const TileLayout& layout = plan.query_layout();
  const auto dim = static_cast<double>(problem.head_dim);
  const double heads = static_cast<double>(problem.batch) * static_cast<double>(problem.heads_q);
  const auto tokens = static_cast<double>(layout.tokens());
  const auto tiles = static_cast<double>(layout.tiles());
  const auto video_tiles = static_cast<double>(layout.video_tiles());
  const auto plain_tiles = static_cast<double>(layout.plain_tiles());
  const auto kept = static_cast<double>(tiles_kept);
  const double plain_tokens = plain_tokens_of(problem.query);
  const double video_tokens = tokens - plain_tokens;

  // Plain query tiles attend everything; a video tile keeps k + P tiles in either mode.
  const double tile_pairs = video_tiles * (kept + plain_tiles) + plain_tiles * tiles;
  double keys = 0;  // expected key tokens of a video query
  if (video_tiles > 0) {
    keys = mode == PrefixMode::exempt ? kept * video_tokens / video_tiles + plain_tokens
                                      : (kept + plain_tiles) * tokens / tiles;
  }
  const double slots = static_cast<double>(problem.tile.tokens());

  Flops flops;
  flops.dense = 4 * dim * heads * tokens * tokens;
  flops.slots = 4 * dim * heads * slots * slots * tile_pairs;
  flops.tokens = 4 * dim * heads * (video_tokens * keys + plain_tokens * tokens);
  flops.select = 2 * dim * heads * tiles * tiles;
  return flops;
}

ExtraMemory extra_memory_of(const Plan& plan, const Selection& selection) {
  ForwardArgs forward;
  forward.q = forward.out = query_tensor(plan);
  forward.k = forward.v = key_tensor(plan);
  forward.selection = selection;

  ForwardArgs saving = forward;
  saving.lse = token_rows(plan);
  // Sizes depend on a mask's presence alone; the word behind the pointer is never read.
  std::uint64_t word = 0;
  saving.mask = TileMaskRef(&word, plan.mask_shape());

  BackwardArgs backward;
  backward.q = backward.out = backward.dout = backward.dq = query_tensor(plan);
  backward.k = backward.v = backward.dk = backward.dv = key_tensor(plan);
  backward.mask = saving.mask;
  backward.lse = saving.lse;

  const std::size_t lse_bytes =
      static_cast<std::size_t>(saving.lse.elements()) * size_of(saving.lse.dtype);
  const std::size_t mask_bytes = static_cast<std::size_t>(plan.mask_shape().words()) * 8;
  ExtraMemory memory;
  memory.forward = plan.workspace_bytes(forward);
  memory.training = lse_bytes + mask_bytes +
                    std::max(plan.workspace_bytes(saving), plan.workspace_bytes(backward));
  memory.dense_training = lse_bytes;
  memory.q_bytes = static_cast<std::size_t>(forward.q.elements()) * size_of(forward.q.dtype);
  return memory;
}

}  // namespace vidsparse::tools
