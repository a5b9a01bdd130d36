#include "cuda/common/backward.hpp"

#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {

BackwardParts take_backward_parts(core::Arena& arena, const Context& context,
                                  const BackwardArgs& args) {
  const std::int64_t batch = context.batch();
  const std::int64_t heads = context.heads();
  const std::int64_t query_tiles = context.query.tiles;
  const std::int64_t key_tiles = context.key.tiles;
  const std::int64_t d = context.head_dim();
  const std::int64_t fragments = batch * heads * context.query.fragments();
  BackwardParts parts;
  parts.rows = arena.take<float>(fragments * 2 * kFragment);
  parts.queries = arena.take<KeyFragment>(fragments);
  parts.key_batches = context.table_batches(args.lengths);
  parts.keys = arena.take<KeyFragment>(std::int64_t{context.key.fragments()} * parts.key_batches);
  parts.by_key = arena.mask({batch, heads, key_tiles, query_tiles});
  if (args.gate.is_none()) return parts;
  const auto pooled = [&](std::int64_t h, std::int64_t tiles) {
    return arena.tensor(DType::f32, 4, {batch, h, tiles, d});
  };
  parts.pool.q = args.q;
  parts.pool.k = args.k;
  parts.pool.v = args.v;
  parts.pool.lengths = args.lengths;
  parts.pool.qc = pooled(heads, query_tiles);
  parts.pool.kc = pooled(context.key_heads(), key_tiles);
  parts.pool.vc = pooled(context.key_heads(), key_tiles);
  parts.d_oc = pooled(heads, query_tiles);
  parts.coarse_rows = arena.tensor(DType::f32, 4, {batch, heads, query_tiles, 4});
  parts.dqc = pooled(heads, query_tiles);
  parts.dkc = pooled(context.key_heads(), key_tiles);
  parts.dvc = pooled(context.key_heads(), key_tiles);
  return parts;
}

ListOrder take_key_order(core::Arena& arena, const Context& context, const BackwardParts& parts) {
  ListOrder order;
  order.mask = parts.by_key.words;
  order.planes = static_cast<std::int32_t>(context.batch() * context.key_heads());
  order.members = static_cast<std::int32_t>(context.group());
  order.tiles = context.key.tiles;
  order.row_words = static_cast<std::int32_t>(parts.by_key.shape.row_words());
  const std::int64_t tiles = std::int64_t{order.planes} * order.tiles;
  order.lengths = arena.take<std::int32_t>(tiles);
  order.order = arena.take<std::int32_t>(tiles);
  return order;
}

TableWork keys_table(const Context& context, const BackwardArgs& args, const BackwardParts& parts) {
  TableWork work;
  work.side = with_lengths(context.key, args.lengths.key);
  work.batches = parts.key_batches;
  work.table = parts.keys;
  return work;
}

void begin_backward(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                    const TableWork& keys, cudaStream_t stream, const EdgeBoxes& edges) {
  require_aligned_rows("dq", args.dq);
  require_aligned_rows("dk", args.dk);
  require_aligned_rows("dv", args.dv);
  require_aligned_rows("out", args.out);
  require_aligned_rows("dout", args.dout);
  if (args.gate.is_tensor()) require_aligned_rows("gate", args.gate.tensor());
  if (args.dgate) require_aligned_rows("dgate", args.dgate);
  prepare_rows(context, args, parts, stream, edges);
  transpose_mask(args.mask, parts.by_key, stream);
  if (args.gate.is_none()) return fill_fragment_table(keys, stream);
  pool(context, parts.pool, stream, keys);
  coarse_backward(context, args, parts, stream);
}

}  // namespace vidsparse::cuda
