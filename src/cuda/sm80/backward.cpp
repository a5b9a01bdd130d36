#include "cuda/sm80/backward.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <numbers>

#include "core/workspace.hpp"
#include "cuda/common/backward.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/sm80/blocks.hpp"
#include "cuda/sm80/gradient_launch.hpp"
#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {
namespace {

/// Calls visit(element, launch by key, launch by query) for the instances a problem and its device
/// need.
template <class Visit>
void with_instances(const Context& context, Shape shape, Visit&& visit) {
  const auto by_width = [&]<class T, Shape kShape>(T element) {
    if (context.head_dim() == 128) {
      visit(element, GradientLaunch<T, 128, true, kShape>{},
            GradientLaunch<T, 128, false, kShape>{});
    } else {
      visit(element, GradientLaunch<T, 64, true, kShape>{}, GradientLaunch<T, 64, false, kShape>{});
    }
  };
  const auto by_shape = [&]<class T>(T element) {
    shape == Shape::large ? by_width.template operator()<T, Shape::large>(element)
                          : by_width.template operator()<T, Shape::small>(element);
  };
  context.dtype() == DType::f16 ? by_shape(__half{}) : by_shape(__nv_bfloat16{});
}

template <class T>
GradientParameters<T> common_parameters(const Context& context, const BackwardArgs& args,
                                        const BackwardParts& parts, const TileMaskView& mask,
                                        std::int64_t own_heads, const Side& own,
                                        const Side& other) {
  GradientParameters<T> p;
  p.blocks = ItemBlocks(own.text_first(), own_heads);
  p.own = own;
  p.other = other;
  const double scale = context.scale(args.scale);
  p.scale = static_cast<float>(scale);
  p.scale_log2 = static_cast<float>(scale * std::numbers::log2e);
  p.norms = parts.rows;
  p.query_fragments = context.query.fragments();
  set_mask(p, mask);
  p.other_fragments = other.fragments();
  p.per_tile = Divider(static_cast<std::uint32_t>(own.fragments_per_tile));
  p.query_heads = static_cast<std::int32_t>(context.heads());
  p.group = Divider(static_cast<std::uint32_t>(context.group()));
  return p;
}

template <class T>
GradientParameters<T> parameters_by_key(const Context& context, const BackwardArgs& args,
                                        const BackwardParts& parts) {
  GradientParameters<T> p = common_parameters<T>(
      context, args, parts, parts.by_key, context.key_heads(),
      with_lengths(context.key, args.lengths.key), with_lengths(context.query, args.lengths.query));
  p.own_scores = head_rows("k", args.k);
  p.own_weights = head_rows("v", args.v);
  p.other_scores = head_rows("q", args.q);
  p.other_weights = head_rows("dout", args.dout);
  p.d_scores = by_token<T>(args.dk);
  p.d_weights = by_token<T>(args.dv);
  if (parts.dkc) {
    p.coarse_scores = by_head<const float>(parts.dkc);
    p.coarse_weights = by_head<const float>(parts.dvc);
  }
  p.own_table = parts.keys;
  p.own_table_batch = parts.key_batches > 1 ? context.key.fragments() : 0;
  p.other_table = parts.queries;
  p.other_table_head = p.query_fragments;
  p.other_table_batch = p.query_fragments * context.heads();
  return p;
}

template <class T>
GradientParameters<T> parameters_by_query(const Context& context, const BackwardArgs& args,
                                          const BackwardParts& parts) {
  GradientParameters<T> p = common_parameters<T>(context, args, parts, args.mask, context.heads(),
                                                 with_lengths(context.query, args.lengths.query),
                                                 with_lengths(context.key, args.lengths.key));
  p.own_scores = head_rows("q", args.q);
  p.own_weights = head_rows("dout", args.dout);
  p.other_scores = head_rows("k", args.k);
  p.other_weights = head_rows("v", args.v);
  p.d_scores = by_token<T>(args.dq);
  if (parts.dqc) p.coarse_scores = by_head<const float>(parts.dqc);
  p.own_table = parts.queries;
  p.own_table_head = p.query_fragments;
  p.own_table_batch = p.query_fragments * context.heads();
  p.other_table = parts.keys;
  p.other_table_batch = parts.key_batches > 1 ? p.other_fragments : 0;
  return p;
}

}  // namespace

void prepare_backward(const Context& context, Shape shape) {
  prepare_coarse_backward(context);
  with_instances(context, shape, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    ByKey::prepare();
    ByQuery::prepare();
  });
}

std::size_t backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  take_backward_parts(arena, context, args);
  return arena.used();
}

void backward(const Context& context, Shape shape, const BackwardArgs& args, Workspace workspace,
              cudaStream_t stream) {
  core::Arena arena(workspace.data);
  const BackwardParts parts = take_backward_parts(arena, context, args);
  with_instances(context, shape, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    const auto by_key = parameters_by_key<T>(context, args, parts);
    const auto by_query = parameters_by_query<T>(context, args, parts);
    begin_backward(context, args, parts, keys_table(context, args, parts), stream);
    const auto keys = by_key.blocks.grid(context.batch());
    const auto queries = by_query.blocks.grid(context.batch());
    if (keys.x > 0) ByKey::run(by_key, {keys.x, keys.y, keys.z}, stream);
    if (queries.x > 0) ByQuery::run(by_query, {queries.x, queries.y, queries.z}, stream);
  });
}

}  // namespace vidsparse::cuda::sm80
