#include "cuda/sm90/attend.hpp"

#include <string>
#include <type_traits>
#include <utility>

#include "core/check.hpp"
#include "core/workspace.hpp"
#include "cuda/common/attend_problem.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/common/limits.hpp"
#include "cuda/sm90/attend_kernel.cuh"
#include "cuda/sm90/item_plan.hpp"
#include "cuda/sm90/pace_plan.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

/// Calls visit(element, config) for the instance a problem needs.
template <class Visit>
void with_instance(const Context& context, bool edges, Visit&& visit) {
  const auto by_edges = [&]<class T, int HeadDim>(T element, std::integral_constant<int, HeadDim>) {
    edges ? visit(element, AttendConfig<HeadDim, true>{})
          : visit(element, AttendConfig<HeadDim, false>{});
  };
  const auto by_width = [&]<class T>(T element) {
    context.head_dim() == 128 ? by_edges(element, std::integral_constant<int, 128>{})
                              : by_edges(element, std::integral_constant<int, 64>{});
  };
  context.dtype() == DType::f16 ? by_width(__half{}) : by_width(__nv_bfloat16{});
}

constexpr std::int64_t kConsumers = AttendConfig<128, false>::kConsumers;

/// How a launch is cut up.
struct Schedule {
  std::int32_t key_fragments = 0;
  ItemPlan items;
  PacePlan pace;
  std::int32_t batches = 1;  ///< of the fragment table
};

Schedule make_schedule(const Context& context, const AttendArgs& args) {
  Schedule s;
  s.key_fragments = context.key.fragments();
  s.items = ItemPlan(context, context.query.text_first(), context.heads(), kConsumers);
  s.batches = context.table_batches(args.lengths);
  s.pace = PacePlan(context, context.key, 1, s.items);
  return s;
}

/// What lies in the workspace.
struct Memory {
  KeyFragment* table;
  std::uint32_t* counters;  ///< of the items, then of the pace
};

Memory take(core::Arena& arena, const Schedule& schedule) {
  return {arena.take<KeyFragment>(std::int64_t{schedule.key_fragments} * schedule.batches),
          arena.take<std::uint32_t>(1 + schedule.pace.arrivals)};
}

template <class T>
AttendParameters<T> make_parameters(const Context& context, const AttendArgs& args,
                                    const Schedule& schedule, const Memory& memory,
                                    const EdgeBoxes& edges) {
  AttendParameters<T> p;
  static_assert(sizeof p <= 4096);  // more needs a driver of CUDA 12.1
  static_cast<AttendProblem<T>&>(p) = make_attend_problem<T>(context, args, memory.table);
  p.k = make_tensor_maps("k", args.k, context.key, edges);
  p.v = make_tensor_maps("v", args.v, context.key, edges);
  p.clear_pads = static_cast<bool>(args.lengths.key);
  if (edges.count > 0) p.filler_units = edges.boxes[0].units();
  schedule.items.put(p, memory.counters);
  schedule.pace.put(p, memory.counters + 1);
  return p;
}

}  // namespace

Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key) {
  if (problem.batch * problem.heads_q >= Order::kMaxPlanes) {
    return Verdict::no("heads_q: expected fewer than 2^28 heads of all batch entries, got " +
                       std::to_string(problem.batch) + " x " + std::to_string(problem.heads_q));
  }
  const std::int64_t parts = problem.tile.tokens() / kFragment;
  // The forward walks the keys, the backward the queries too, with two or three consumers a block.
  for (const auto& [name, layout] : {std::pair("query", &query), std::pair("key", &key)}) {
    const std::int64_t fragments = layout->tiles() * parts;
    if (fragments > Command::kMaxFragments) {
      return Verdict::no(std::string(name) +
                         ": expected at most 2^18 fragments of 64 tokens, got " +
                         std::to_string(fragments));
    }
    const std::int64_t items = problem.batch * problem.heads_q * core::ceil_div(fragments, 2);
    if (items > INT32_MAX / 2) {
      return Verdict::no(std::string(name) +
                         ": expected fewer than 2^30 blocks of two fragments, got " +
                         std::to_string(items));
    }
    if (const Verdict fits = fits_fragment_table(name, *layout); !fits.ok) return fits;
  }
  return can_encode_tensor_maps();
}

void prepare_attend(const Context& context) {
  for (const bool edges : {false, true}) {
    with_instance(context, edges, [&]<class T, class Config>(T, Config) {
      allow_shared(attend_kernel<T, Config>, Config::kSharedBytes);
    });
  }
}

std::size_t attend_bytes(const Context& context, const AttendArgs& args) {
  core::Arena arena(nullptr);
  take(arena, make_schedule(context, args));
  return arena.used();
}

void check_attend(const AttendArgs& args) {
  if (args.q.elements() == 0) return;
  require_aligned_rows(args);
  require_bulk_rows("q", args.q);
  require_bulk_rows("k", args.k);
  require_bulk_rows("v", args.v);
}

TableWork attend_table(const Context& context, const AttendArgs& args, Workspace workspace) {
  const Schedule schedule = make_schedule(context, args);
  TableWork work;
  if (schedule.items.items == 0) return work;
  core::Arena arena(workspace.data);
  const Memory memory = take(arena, schedule);
  work.side = with_lengths(context.key, args.lengths.key);
  work.edges = make_edge_boxes(context.key, static_cast<bool>(args.lengths.key));
  work.batches = schedule.batches;
  work.table = memory.table;
  work.counters = memory.counters;
  work.counter_count = 1 + schedule.pace.arrivals;
  return work;
}

void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream) {
  const Schedule schedule = make_schedule(context, args);
  if (schedule.items.items == 0) return;
  core::Arena arena(workspace.data);
  const Memory memory = take(arena, schedule);
  const EdgeBoxes edges = make_edge_boxes(context.key, static_cast<bool>(args.lengths.key));
  with_instance(context, edges.count > 0, [&]<class T, class Config>(T, Config) {
    const auto parameters = make_parameters<T>(context, args, schedule, memory, edges);
    attend_kernel<T, Config><<<static_cast<unsigned>(schedule.items.blocks), Config::kThreads,
                               Config::kSharedBytes, stream>>>(parameters);
    check(cudaGetLastError(), "attend");
  });
}

}  // namespace vidsparse::cuda::sm90
