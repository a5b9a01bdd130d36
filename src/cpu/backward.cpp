#include "cpu/backward.hpp"

#include <cstring>

#include "core/workspace.hpp"
#include "cpu/stages.hpp"
#include "cpu/workers.hpp"

// Backward of the whole op: prepare (delta, dgate, d_oc), the coarse branch if there is a gate,
// then attention, which adds the coarse gradients as it rounds.

namespace vidsparse::cpu {
namespace {

struct Space {
  float* delta;       ///< [B][H][Sq]
  TensorRef dcoarse;  ///< d_oc [B, H, Nq, D], with a gate, as all below
  CoarseGradients coarse;
  PoolArgs pool;
  Workspace pool_space;
  Workspace coarse_space;
  std::int32_t* query_counts;
  std::int64_t* tokens;  ///< [workers][E]
  Workspace attend_space;
  std::size_t bytes;
};

Space lay_out(core::Arena& arena, const Context& context, const BackwardArgs& args) {
  const std::int64_t batch = context.batch();
  const std::int64_t heads = context.heads();
  const std::int64_t key_heads = context.key_heads();
  const std::int64_t query_tiles = context.query.tiles();
  const std::int64_t key_tiles = context.key.tiles();
  const std::int64_t d = context.head_dim();
  Space space{};
  space.delta = arena.take<float>(batch * heads * context.query.layout().tokens());
  space.query_counts =
      arena.take<std::int32_t>(context.query.count_words(batch, args.lengths.query));
  space.tokens =
      arena.take<std::int64_t>(context.slots_of_tile() * context.setting->parallel.concurrency());
  const bool gated = !args.gate.is_none();
  core::Arena early = arena;
  if (gated) {
    const auto take = [&](core::Arena& from, std::int64_t h, std::int64_t tiles) {
      return from.tensor(DType::f32, 4, {batch, h, tiles, d});
    };
    space.coarse.dqc = take(arena, heads, query_tiles);
    space.coarse.dkc = take(arena, key_heads, key_tiles);
    space.coarse.dvc = take(arena, key_heads, key_tiles);
    // What only the coarse branch needs makes room for attention's packs.
    early = arena;
    space.dcoarse = take(early, heads, query_tiles);
    space.pool.q = args.q;
    space.pool.k = args.k;
    space.pool.v = args.v;
    space.pool.lengths = args.lengths;
    space.pool.qc = take(early, heads, query_tiles);
    space.pool.kc = take(early, key_heads, key_tiles);
    space.pool.vc = take(early, key_heads, key_tiles);
    space.pool_space = early.rest(pool_bytes(context, space.pool));
    space.coarse_space = early.rest(coarse_backward_bytes(context, args));
  }
  space.attend_space = arena.rest(attend_backward_bytes(context, args));
  space.bytes = arena.used() + space.attend_space.bytes;
  for (const Workspace& stage : {space.pool_space, space.coarse_space}) {
    space.bytes = std::max(space.bytes, early.used() + stage.bytes);
  }
  return space;
}

/// delta of every query token, dgate, and d_oc summed over each tile's tokens.
void prepare(const Context& context, const BackwardArgs& args, const Space& space) {
  const Kernels& kernels = *context.kernels;
  const Side& side = context.query;
  const Counts counts = side.counts(context.batch(), args.lengths.query, space.query_counts);
  const int d = context.head_dim();
  const std::int64_t tokens_of_head = side.layout().tokens();
  const std::int64_t units = context.batch() * side.tiles();
  const Gate& gate = args.gate;
  for_each_unit(context.setting->parallel, kernels, units, [&](std::int64_t unit, int worker) {
    const std::int64_t b = unit / side.tiles();
    const std::int64_t tile = unit % side.tiles();
    const std::int64_t count = counts.row(b)[tile];
    const std::int64_t capacity = side.capacity(tile);
    std::int64_t* tokens = space.tokens + worker * context.slots_of_tile();
    side.gather(tile, capacity, tokens);
    for (std::int64_t head = 0; head < context.heads(); ++head) {
      PrepareRow row{};
      row.dtype = context.dtype();
      row.d = d;
      const HeadRows<const void*> dout(args.dout, b, head);
      const HeadRows<const void*> out(args.out, b, head);
      HeadRows<const void*> gates;
      HeadRows<void*> dgate;
      if (!gate.is_none()) {
        row.coarse = static_cast<const float*>(args.oc.data) + args.oc.offset(b, head, tile);
        row.gate_scalar = gate.is_scalar() ? gate.value() : 0.0f;
        row.dcoarse = static_cast<float*>(space.dcoarse.data) + space.dcoarse.offset(b, head, tile);
        std::memset(row.dcoarse, 0, static_cast<std::size_t>(d) * sizeof(float));
        if (gate.is_tensor()) gates = HeadRows<const void*>(gate.tensor(), b, head);
        if (args.dgate) dgate = HeadRows<void*>(args.dgate, b, head);
      }
      float* delta = space.delta + (b * context.heads() + head) * tokens_of_head;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t token = tokens[i];
        row.dout = dout[token];
        row.out = out[token];
        if (gate.is_tensor()) row.gate = gates[token];
        if (args.dgate) row.dgate = dgate[token];
        delta[token] = kernels.prepare_row(row);
        if (args.dlse) {
          delta[token] -=
              static_cast<const float*>(args.dlse.data)[args.dlse.offset(b, head, token)];
        }
      }
      if (!args.dgate) continue;
      for (std::int64_t i = count; i < capacity; ++i) {
        std::memset(dgate[tokens[i]], 0, static_cast<std::size_t>(d) * context.element());
      }
    }
  });
}

}  // namespace

std::size_t backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  return lay_out(arena, context, args).bytes;
}

void backward(const Context& context, const BackwardArgs& args, Workspace workspace) {
  core::Arena arena(workspace.data);
  const Space space = lay_out(arena, context, args);
  prepare(context, args, space);
  if (!args.gate.is_none()) {
    pool(context, space.pool, space.pool_space);
    coarse_backward(context, args, space.pool, space.dcoarse, space.coarse, space.coarse_space);
  }
  attend_backward(context, args, space.delta, space.coarse, space.attend_space);
}

}  // namespace vidsparse::cpu
