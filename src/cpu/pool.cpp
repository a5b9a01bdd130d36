#include <cstring>

#include "core/workspace.hpp"
#include "cpu/stages.hpp"
#include "cpu/workers.hpp"

namespace vidsparse::cpu {
namespace {

struct Space {
  std::int32_t* query_counts;
  std::int32_t* key_counts;
  std::int64_t* tokens;  ///< [workers][E]
  const void** rows;     ///< [workers][E]
};

Space lay_out(core::Arena& arena, const Context& context, const PoolArgs& args) {
  const std::int64_t tile = context.slots_of_tile();
  const std::int64_t workers = context.setting->parallel.concurrency();
  Space space;
  space.query_counts =
      arena.take<std::int32_t>(context.query.count_words(context.batch(), args.lengths.query));
  space.key_counts =
      arena.take<std::int32_t>(context.key.count_words(context.batch(), args.lengths.key));
  space.tokens = arena.take<std::int64_t>(workers * tile);
  space.rows = arena.take<const void*>(workers * tile);
  return space;
}

/// One pass over a tensor; all heads of a token while its rows are near.
void pool_tensor(const Context& context, const Side& side, const Counts& counts, const Space& space,
                 const TensorView& tensor, const TensorRef& means) {
  const Kernels& kernels = *context.kernels;
  const std::int64_t tile_slots = context.slots_of_tile();
  const int d = context.head_dim();
  const std::int64_t heads = tensor.shape[2];
  const std::int64_t units = context.batch() * side.tiles();
  for_each_unit(context.setting->parallel, kernels, units, [&](std::int64_t unit, int worker) {
    const std::int64_t b = unit / side.tiles();
    const std::int64_t tile = unit % side.tiles();
    std::int64_t* tokens = space.tokens + worker * tile_slots;
    const void** rows = space.rows + worker * tile_slots;
    const int count = counts.row(b)[tile];
    side.gather(tile, count, tokens);
    for (std::int64_t head = 0; head < heads; ++head) {
      float* mean = static_cast<float*>(means.data) + means.offset(b, head, tile);
      if (count == 0) {
        std::memset(mean, 0, static_cast<std::size_t>(d) * sizeof(float));
        continue;
      }
      HeadRows<const void*>(tensor, b, head).collect(tokens, count, rows);
      kernels.sum_rows(tensor.dtype, rows, count, d, mean);
      const float share = 1.0f / static_cast<float>(count);
      kernels.finish_row({mean, share, nullptr, nullptr, 0.0f, DType::f32, mean, d});
    }
  });
}

}  // namespace

std::size_t pool_bytes(const Context& context, const PoolArgs& args) {
  core::Arena arena(nullptr);
  lay_out(arena, context, args);
  return arena.used();
}

void pool(const Context& context, const PoolArgs& args, Workspace workspace) {
  core::Arena arena(workspace.data);
  const Space space = lay_out(arena, context, args);
  const auto side = [&](const Side& which, const TensorView& lengths, std::int32_t* words) {
    return which.counts(context.batch(), lengths, words);
  };
  if (args.qc) {
    const Counts counts = side(context.query, args.lengths.query, space.query_counts);
    pool_tensor(context, context.query, counts, space, args.q, args.qc);
  }
  if (!args.kc && !args.vc) return;
  const Counts counts = side(context.key, args.lengths.key, space.key_counts);
  if (args.kc) pool_tensor(context, context.key, counts, space, args.k, args.kc);
  if (args.vc) pool_tensor(context, context.key, counts, space, args.v, args.vc);
}

}  // namespace vidsparse::cpu
