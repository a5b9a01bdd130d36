#include "cuda/sm90/backward.hpp"

#include <numbers>
#include <type_traits>

#include "core/check.hpp"
#include "core/workspace.hpp"
#include "cuda/common/backward.hpp"
#include "cuda/sm90/attend_kernel.cuh"
#include "cuda/sm90/backward_consumer.cuh"
#include "cuda/sm90/item_plan.hpp"
#include "cuda/sm90/pace_plan.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  run_block<BackwardConsumer<T, Config>, Config>(parameters, shared);
}

/// The edge boxes of both sides.
struct Edges {
  EdgeBoxes query;
  EdgeBoxes key;
};

/// Calls visit(element, config by key, config by query) for the instances a problem needs, given
/// whether its queries and its keys have edge boxes.
template <class Visit>
void with_instances(const Context& context, bool queries, bool keys, Visit&& visit) {
  const auto by_keys = [&]<class T, int D, bool Queries>(T element,
                                                         BackwardConfig<D, true, Queries> by_key) {
    keys ? visit(element, by_key, BackwardConfig<D, false, true>{})
         : visit(element, by_key, BackwardConfig<D, false, false>{});
  };
  const auto by_edges = [&]<class T, int D>(T element, std::integral_constant<int, D>) {
    queries ? by_keys(element, BackwardConfig<D, true, true>{})
            : by_keys(element, BackwardConfig<D, true, false>{});
  };
  const auto by_width = [&]<class T>(T element) {
    context.head_dim() == 128 ? by_edges(element, std::integral_constant<int, 128>{})
                              : by_edges(element, std::integral_constant<int, 64>{});
  };
  context.dtype() == DType::f16 ? by_width(__half{}) : by_width(__nv_bfloat16{});
}

constexpr std::int64_t kKeyConsumers = BackwardConfig<128, true, false>::kConsumers;
constexpr std::int64_t kQueryConsumers = BackwardConfig<128, false, false>::kConsumers;

/// How a pass is cut up.
struct Pass {
  std::int32_t other_fragments = 0;
  std::int32_t members = 1;  ///< heads an item walks
  ItemPlan items;
  PacePlan pace;

  std::int64_t counters() const { return 1 + pace.arrivals; }  ///< of the items, then of the pace
};

Pass make_pass(const Context& context, bool by_key) {
  const Side& own = by_key ? context.key : context.query;
  const Side& other = by_key ? context.query : context.key;
  Pass pass;
  pass.other_fragments = other.fragments();
  pass.members = static_cast<std::int32_t>(by_key ? context.group() : 1);
  if (by_key) {
    // The longest lists come first, so those of text do wherever it stands.
    const TextFirst text = own.text_first();
    pass.items =
        ItemPlan(context, {text.text(), text.video, 0}, context.key_heads(), kKeyConsumers);
  } else {
    pass.items = ItemPlan(context, own.text_first(), context.heads(), kQueryConsumers);
  }
  pass.pace = PacePlan(context, other, pass.members, pass.items);
  return pass;
}

/// What lies in the workspace.
struct Memory {
  BackwardParts parts;
  std::uint32_t* counters;  ///< by key, then by query
  ListOrder order;          ///< of key tiles
};

Memory take(core::Arena& arena, const Context& context, const BackwardArgs& args,
            const Pass& by_key, const Pass& by_query) {
  BackwardParts parts = take_backward_parts(arena, context, args);
  auto* counters = arena.take<std::uint32_t>(by_key.counters() + by_query.counters());
  return {parts, counters, take_key_order(arena, context, parts)};
}

/// What both passes have in common.
template <class T>
BackwardParameters<T> make_parameters(const Context& context, const BackwardArgs& args,
                                      const Pass& pass, const Memory& memory,
                                      std::uint32_t* counters, const EdgeBoxes& others) {
  BackwardParameters<T> p;
  static_assert(sizeof p <= 4096);  // more needs a driver of CUDA 12.1
  const double scale = context.scale(args.scale);
  p.scale = static_cast<float>(scale);
  p.scale_log2 = static_cast<float>(scale * std::numbers::log2e);
  p.rows = memory.parts.rows;
  p.key_fragments = pass.other_fragments;
  p.fragments_per_tile = Divider(static_cast<std::uint32_t>(context.key.fragments_per_tile));
  p.members = pass.members;
  if (others.count > 0) p.filler_units = others.boxes[0].units();
  pass.items.put(p, counters);
  pass.pace.put(p, counters + 1);
  return p;
}

template <class T>
BackwardParameters<T> parameters_by_key(const Context& context, const BackwardArgs& args,
                                        const Pass& pass, const Memory& memory,
                                        const EdgeBoxes& edges) {
  BackwardParameters<T> p = make_parameters<T>(context, args, pass, memory, memory.counters, edges);
  const BackwardParts& parts = memory.parts;
  p.k = make_tensor_maps("dout", args.dout, context.query, edges);
  p.v = make_tensor_maps("q", args.q, context.query, edges);
  p.own = with_lengths(context.key, args.lengths.key);
  p.own_scores = by_token<const T>(args.k);
  p.own_weights = by_token<const T>(args.v);
  p.d_scores = by_token<T>(args.dk);
  p.d_weights = by_token<T>(args.dv);
  p.coarse_scores = static_cast<const float*>(parts.dkc.data);
  p.coarse_weights = static_cast<const float*>(parts.dvc.data);
  p.order = memory.order.order;
  p.no_scores = p.scale_log2 == 0;
  if (p.no_scores) p.scale_log2 = 1;
  p.norm_factor = -1 / p.scale_log2;
  set_mask(p, parts.by_key);
  p.table = parts.queries;
  p.table_head = pass.other_fragments;
  p.table_batch = pass.other_fragments * context.heads();
  return p;
}

template <class T>
BackwardParameters<T> parameters_by_query(const Context& context, const BackwardArgs& args,
                                          const Pass& pass, const Memory& memory,
                                          const Edges& edges, std::uint32_t* counters) {
  BackwardParameters<T> p = make_parameters<T>(context, args, pass, memory, counters, edges.key);
  p.k = make_tensor_maps("v", args.v, context.key, edges.key);
  p.v = make_tensor_maps("k", args.k, context.key, edges.key);
  p.own = with_lengths(context.query, args.lengths.query);
  p.own_edges = edges.query;
  p.own_scores = by_token<const T>(args.q);
  p.own_weights = by_token<const T>(args.dout);
  p.d_scores = by_token<T>(args.dq);
  p.coarse_scores = static_cast<const float*>(memory.parts.dqc.data);
  set_mask(p, args.mask);
  p.table = memory.parts.keys;
  p.table_batch = memory.parts.key_batches > 1 ? pass.other_fragments : 0;
  p.clear_pads = static_cast<bool>(args.lengths.key);
  p.group = static_cast<std::int32_t>(context.group());
  return p;
}

}  // namespace

void prepare_backward(const Context& context) {
  prepare_coarse_backward(context);
  for (const bool edges : {false, true}) {
    with_instances(context, edges, edges,
                   [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
                     allow_shared(backward_kernel<T, ByKey>, ByKey::kSharedBytes);
                     allow_shared(backward_kernel<T, ByQuery>, ByQuery::kSharedBytes);
                   });
  }
}

std::size_t backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  take(arena, context, args, make_pass(context, true), make_pass(context, false));
  return arena.used();
}

void backward(const Context& context, const BackwardArgs& args, Workspace workspace,
              cudaStream_t stream) {
  const Pass by_key = make_pass(context, true);
  const Pass by_query = make_pass(context, false);
  core::Arena arena(workspace.data);
  const Memory memory = take(arena, context, args, by_key, by_query);
  const Edges edges = {make_edge_boxes(context.query, static_cast<bool>(args.lengths.query)),
                       make_edge_boxes(context.key, static_cast<bool>(args.lengths.key))};
  const auto run = [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    // All that may refuse comes before the first launch.
    const auto keys = parameters_by_key<T>(context, args, by_key, memory, edges.query);
    const auto queries = parameters_by_query<T>(context, args, by_query, memory, edges,
                                                memory.counters + by_key.counters());
    TableWork table = keys_table(context, args, memory.parts);
    table.edges = edges.key;
    table.order = memory.order;
    table.counters = memory.counters;
    table.counter_count = by_key.counters() + by_query.counters();
    begin_backward(context, args, memory.parts, table, stream, edges.query);
    const auto launch = [&](auto kernel, const Pass& pass, const auto& parameters, auto config) {
      if (pass.items.items == 0) return;
      using Config = decltype(config);
      kernel<<<static_cast<unsigned>(pass.items.blocks), Config::kThreads, Config::kSharedBytes,
               stream>>>(parameters);
      check(cudaGetLastError(), "backward");
    };
    launch(backward_kernel<T, ByKey>, by_key, keys, ByKey{});
    launch(backward_kernel<T, ByQuery>, by_query, queries, ByQuery{});
  };
  with_instances(context, edges.query.count > 0, edges.key.count > 0, run);
}

}  // namespace vidsparse::cuda::sm90
