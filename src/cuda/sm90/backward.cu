#include "cuda/sm90/backward.hpp"

#include <algorithm>
#include <numbers>

#include "core/check.hpp"
#include "core/workspace.hpp"
#include "cuda/common/backward.hpp"
#include "cuda/sm90/attend_kernel.cuh"
#include "cuda/sm90/backward_consumer.cuh"

namespace vidsparse::cuda::sm90 {
namespace {

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  run_block<BackwardConsumer<T, Config>, Config>(parameters, shared);
}

/// Calls visit(element, config by key, config by query) for the instances a problem needs.
template <class Visit>
void with_instances(const Context& context, Visit&& visit) {
  const auto by_width = [&]<class T>(T element) {
    if (context.head_dim() == 128) {
      visit(element, BackwardConfig<128, true>{}, BackwardConfig<128, false>{});
    } else {
      visit(element, BackwardConfig<64, true>{}, BackwardConfig<64, false>{});
    }
  };
  context.dtype() == DType::f16 ? by_width(__half{}) : by_width(__nv_bfloat16{});
}

constexpr std::int64_t kKeyConsumers = BackwardConfig<128, true>::kConsumers;
constexpr std::int64_t kQueryConsumers = BackwardConfig<128, false>::kConsumers;
constexpr std::int32_t kPaceFragments = 128;
constexpr std::int32_t kPaceSlack = 1;

/// Whether fragments at an edge have at most 16 valid slots, and those the first ones: all of a
/// fragment's other sides are whole.
bool has_narrow(const Side& side) {
  for (std::int32_t s = 0; s < side.segment_count; ++s) {
    const Raster& segment = side.segments[s];
    const Triple box = side.boxes[segment.line].fragment();
    const auto rest = [](std::int32_t length, std::int32_t part) {
      return (length - 1) % part + 1;
    };
    const std::int32_t valid = box.t > 1   ? rest(segment.grid.t, box.t) * box.h * box.w
                               : box.h > 1 ? rest(segment.grid.h, box.h) * box.w
                                           : rest(segment.grid.w, box.w);
    if (valid <= 16) return true;
  }
  return false;
}

/// How a pass is cut up.
struct Pass {
  std::int32_t own_fragments = 0;
  std::int32_t other_fragments = 0;
  std::int32_t heads = 0;    ///< of the own side
  std::int32_t members = 1;  ///< heads an item walks
  bool narrow = false;
  std::int64_t items_per_head = 0;
  std::int64_t items = 0;
  std::int64_t blocks = 0;
  std::int32_t pace_fragments = 0;
  std::int64_t pace_steps = 0;
  std::int64_t arrivals = 0;  ///< counters of the pace
};

Pass make_pass(const Context& context, bool by_key) {
  const Side& own = by_key ? context.key : context.query;
  const Side& other = by_key ? context.query : context.key;
  Pass pass;
  pass.own_fragments = own.fragments();
  pass.other_fragments = other.fragments();
  pass.heads = static_cast<std::int32_t>(by_key ? context.key_heads() : context.heads());
  pass.members = static_cast<std::int32_t>(by_key ? context.group() : 1);
  pass.items_per_head =
      core::ceil_div(pass.own_fragments, by_key ? kKeyConsumers : kQueryConsumers);
  pass.items = pass.items_per_head * pass.heads * context.batch();
  pass.blocks = std::min<std::int64_t>(pass.items, context.multiprocessors);
  pass.narrow = has_narrow(other);
  // Two tensors of a head of the other side, two bytes an element.
  if (pass.blocks > 0 && 4 * std::int64_t{other.tokens} * context.head_dim() > context.l2_bytes) {
    pass.pace_fragments = kPaceFragments;
    pass.pace_steps =
        core::ceil_div(pass.other_fragments, kPaceFragments) * pass.members * (pass.narrow ? 2 : 1);
    pass.arrivals = core::ceil_div(pass.items, pass.blocks) * pass.pace_steps;
  }
  if (pass.arrivals >= Order::kMaxPaceSteps) {
    pass.pace_fragments = pass.pace_steps = pass.arrivals = 0;
  }
  return pass;
}

/// What lies in the workspace.
struct Memory {
  BackwardParts parts;
  std::uint32_t* arrivals;  ///< by key, then by query
};

Memory take(core::Arena& arena, const Context& context, const BackwardArgs& args,
            const Pass& by_key, const Pass& by_query) {
  BackwardParts parts = take_backward_parts(arena, context, args);
  return {parts, arena.take<std::uint32_t>(by_key.arrivals + by_query.arrivals)};
}

/// What both passes have in common.
template <class T>
BackwardParameters<T> make_parameters(const Context& context, const BackwardArgs& args,
                                      const Pass& pass, const Memory& memory) {
  BackwardParameters<T> p;
  const double scale = context.scale(args.scale);
  p.scale = static_cast<float>(scale);
  p.scale_log2 = static_cast<float>(scale * std::numbers::log2e);
  p.rows = memory.parts.rows;
  p.key_fragments = pass.other_fragments;
  p.fragments_per_tile = Divider(static_cast<std::uint32_t>(context.key.fragments_per_tile));
  p.heads = pass.heads;
  p.members = pass.members;
  p.narrow = pass.narrow;
  p.query_fragments = pass.own_fragments;
  p.items_per_head = static_cast<std::int32_t>(pass.items_per_head);
  p.items = static_cast<std::int32_t>(pass.items);
  p.pace_fragments = pass.pace_fragments;
  p.pace_steps = static_cast<std::int32_t>(pass.pace_steps);
  p.pace_slack = kPaceSlack;
  return p;
}

template <class T>
BackwardParameters<T> parameters_by_key(const Context& context, const BackwardArgs& args,
                                        const Pass& pass, const Memory& memory) {
  BackwardParameters<T> p = make_parameters<T>(context, args, pass, memory);
  const BackwardParts& parts = memory.parts;
  p.k = make_tensor_maps("dout", args.dout, context.query);
  p.v = make_tensor_maps("q", args.q, context.query);
  p.own = with_lengths(context.key, args.lengths.key);
  p.own_scores = by_token<const T>(args.k);
  p.own_weights = by_token<const T>(args.v);
  p.d_scores = by_token<T>(args.dk);
  p.d_weights = by_token<T>(args.dv);
  p.coarse_scores = static_cast<const float*>(parts.dkc.data);
  p.coarse_weights = static_cast<const float*>(parts.dvc.data);
  p.no_scores = p.scale_log2 == 0;
  if (p.no_scores) p.scale_log2 = 1;
  p.norm_factor = -1 / p.scale_log2;
  set_mask(p, parts.by_key);
  p.table = parts.queries;
  p.table_head = pass.other_fragments;
  p.table_batch = pass.other_fragments * context.heads();
  if (pass.arrivals > 0) p.arrivals = memory.arrivals;
  return p;
}

template <class T>
BackwardParameters<T> parameters_by_query(const Context& context, const BackwardArgs& args,
                                          const Pass& pass, const Memory& memory,
                                          std::int64_t first_arrival) {
  BackwardParameters<T> p = make_parameters<T>(context, args, pass, memory);
  p.k = make_tensor_maps("v", args.v, context.key);
  p.v = make_tensor_maps("k", args.k, context.key);
  p.own = with_lengths(context.query, args.lengths.query);
  p.own_scores = by_token<const T>(args.q);
  p.own_weights = by_token<const T>(args.dout);
  p.d_scores = by_token<T>(args.dq);
  p.coarse_scores = static_cast<const float*>(memory.parts.dqc.data);
  set_mask(p, args.mask);
  p.table = memory.parts.keys;
  p.table_batch = memory.parts.key_batches > 1 ? pass.other_fragments : 0;
  p.clear_pads = static_cast<bool>(args.lengths.key);
  p.group = static_cast<std::int32_t>(context.group());
  if (pass.arrivals > 0) p.arrivals = memory.arrivals + first_arrival;
  return p;
}

}  // namespace

void prepare_backward(const Context& context) {
  prepare_coarse_backward(context);
  with_instances(context, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    allow_shared(backward_kernel<T, ByKey>, ByKey::kSharedBytes);
    allow_shared(backward_kernel<T, ByQuery>, ByQuery::kSharedBytes);
  });
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
  with_instances(context, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    // All that may refuse comes before the first launch.
    const auto keys = parameters_by_key<T>(context, args, by_key, memory);
    const auto queries = parameters_by_query<T>(context, args, by_query, memory, by_key.arrivals);
    TableWork table = keys_table(context, args, memory.parts);
    table.counters = memory.arrivals;
    table.counter_count = by_key.arrivals + by_query.arrivals;
    begin_backward(context, args, memory.parts, table, stream);
    const auto launch = [&](auto kernel, const Pass& pass, const auto& parameters, auto config) {
      if (pass.items == 0) return;
      using Config = decltype(config);
      kernel<<<static_cast<unsigned>(pass.blocks), Config::kThreads, Config::kSharedBytes,
               stream>>>(parameters);
      check(cudaGetLastError(), "backward");
    };
    launch(backward_kernel<T, ByKey>, by_key, keys, ByKey{});
    launch(backward_kernel<T, ByQuery>, by_query, queries, ByQuery{});
  });
}

}  // namespace vidsparse::cuda::sm90
