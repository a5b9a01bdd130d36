#include "cuda/sm90/attend.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/check.hpp"
#include "core/workspace.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/sm90/attend_kernel.cuh"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {
namespace {

/// Calls visit(element, config) for the instance a problem needs.
template <class Visit>
void with_instance(const Context& context, Visit&& visit) {
  const bool wide = context.head_dim() == 128;
  if (context.dtype() == DType::f16) {
    wide ? visit(__half{}, AttendConfig<128>{}) : visit(__half{}, AttendConfig<64>{});
  } else {
    wide ? visit(__nv_bfloat16{}, AttendConfig<128>{}) : visit(__nv_bfloat16{}, AttendConfig<64>{});
  }
}

constexpr std::int64_t kConsumers = AttendConfig<128>::kConsumers;

// Steps of the pace, as docs/kernels/sm90_forward.md measured them: shorter ones cost more waiting
// than they save.
constexpr std::int32_t kPaceFragments = 128;
constexpr std::int32_t kPaceSlack = 1;

/// Whether a head's K and V do not fit L2.
bool outgrows_l2(const Context& context) {
  return 2 * std::int64_t{context.key.tokens} * context.head_dim() * 2 > context.l2_bytes;
}

/// How a launch is cut up.
struct Schedule {
  std::int32_t query_fragments = 0;
  std::int32_t key_fragments = 0;
  std::int64_t items_per_head = 0;
  std::int64_t items = 0;
  std::int64_t blocks = 0;
  std::int32_t pace_fragments = 0;  ///< key fragments of a step of the pace; 0: none
  std::int64_t pace_steps = 0;      ///< of an item
  std::int64_t arrivals = 0;        ///< counters of the pace
  std::int32_t batches = 1;         ///< of the fragment table
};

Schedule make_schedule(const Context& context, const AttendArgs& args) {
  Schedule s;
  s.query_fragments = context.query.tiles * context.query.fragments_per_tile;
  s.key_fragments = context.key.tiles * context.key.fragments_per_tile;
  s.items_per_head = core::ceil_div(s.query_fragments, kConsumers);
  s.items = s.items_per_head * context.heads() * context.batch();
  s.blocks = std::min<std::int64_t>(s.items, context.multiprocessors);
  s.batches = args.lengths.key ? static_cast<std::int32_t>(context.batch()) : 1;
  if (outgrows_l2(context) && s.blocks > 0) {
    s.pace_fragments = kPaceFragments;
    s.pace_steps = core::ceil_div(s.key_fragments, kPaceFragments);
    s.arrivals = core::ceil_div(s.items, s.blocks) * s.pace_steps;
  }
  return s;
}

/// What lies in the workspace.
struct Memory {
  KeyFragment* table;
  std::uint32_t* arrivals;
};

Memory take(core::Arena& arena, const Schedule& schedule) {
  return {arena.take<KeyFragment>(std::int64_t{schedule.key_fragments} * schedule.batches),
          arena.take<std::uint32_t>(schedule.arrivals)};
}

template <class T>
AttendParameters<T> make_parameters(const Context& context, const AttendArgs& args,
                                    const Schedule& schedule, const Memory& memory) {
  AttendParameters<T> p;
  p.k = make_tensor_maps("k", args.k, context.key);
  p.v = make_tensor_maps("v", args.v, context.key);
  p.query = with_lengths(context.query, args.lengths.query);
  p.q = by_token<const T>(args.q);
  p.out = by_token<T>(args.out);
  if (args.gate.is_tensor()) p.gate = by_token<const T>(args.gate.tensor());
  if (args.gate.is_scalar()) p.gate_value = args.gate.value();
  if (!args.gate.is_none()) p.oc = by_head<const float>(args.oc);
  if (args.lse) {
    p.lse = {static_cast<float*>(args.lse.data), args.lse.strides[0], args.lse.strides[1],
             args.lse.shape[2] > 1 ? args.lse.strides[2] : 1};
  }
  const double scale = context.scale(args.scale);
  // The kernel's is above 0, so that masked scores of -inf stay so.
  p.scale_log2 = scale == 0 ? 1.0F : static_cast<float>(std::abs(scale) * 1.4426950408889634);
  if (scale == 0) p.query_and = 0;
  if (scale < 0) p.query_xor = 0x80008000U;
  p.mask = reinterpret_cast<const std::uint32_t*>(args.mask.words);
  p.mask_row = args.mask.shape.row_words() * 2;
  p.mask_head = args.mask.head_stride * 2;
  p.mask_batch = args.mask.batch_stride * 2;
  p.table = memory.table;
  p.table_batch = schedule.batches > 1 ? schedule.key_fragments : 0;
  p.key_fragments = schedule.key_fragments;
  p.fragments_per_tile = Divider(static_cast<std::uint32_t>(context.key.fragments_per_tile));
  p.clear_pads = static_cast<bool>(args.lengths.key);
  p.heads = static_cast<std::int32_t>(context.heads());
  p.group = static_cast<std::int32_t>(context.group());
  p.query_fragments = schedule.query_fragments;
  p.items_per_head = static_cast<std::int32_t>(schedule.items_per_head);
  p.items = static_cast<std::int32_t>(schedule.items);
  if (schedule.arrivals > 0) p.arrivals = memory.arrivals;
  p.pace_fragments = schedule.pace_fragments;
  p.pace_steps = static_cast<std::int32_t>(schedule.pace_steps);
  p.pace_slack = kPaceSlack;
  return p;
}

}  // namespace

Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key) {
  const std::int64_t parts = problem.tile.tokens() / kFragment;
  if (key.tiles() * parts > Command::kMaxFragments) {
    return Verdict::no("key: expected at most 2^18 fragments of 64 tokens, got " +
                       std::to_string(key.tiles() * parts));
  }
  for (const Segment& segment : key.sequence().segments()) {
    const auto* video = std::get_if<Video>(&segment);
    if (video == nullptr) continue;
    if (video->t > KeyFragment::kMaxFrames || video->h > KeyFragment::kMaxHeight) {
      return Verdict::no("key: expected videos of at most 4096 x 65536 (T x H), got " +
                         key.sequence().to_string());
    }
  }
  const std::int64_t items =
      problem.batch * problem.heads_q * core::ceil_div(query.tiles() * parts, kConsumers);
  if (items > INT32_MAX / 2) {
    return Verdict::no("query: expected fewer than 2^30 blocks of three fragments, got " +
                       std::to_string(items));
  }
  return can_encode_tensor_maps();
}

void prepare_attend(const Context& context) {
  with_instance(context, [&]<class T, class Config>(T, Config) {
    check(cudaFuncSetAttribute(attend_kernel<T, Config>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes),
          "cudaFuncSetAttribute");
  });
}

std::size_t attend_bytes(const Context& context, const AttendArgs& args) {
  core::Arena arena(nullptr);
  take(arena, make_schedule(context, args));
  return arena.used();
}

void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream) {
  const Schedule schedule = make_schedule(context, args);
  if (schedule.items == 0) return;
  require_aligned_rows("q", args.q);
  require_aligned_rows("out", args.out);
  if (args.gate.is_tensor()) require_aligned_rows("gate", args.gate.tensor());
  if (!args.gate.is_none()) require_aligned_rows("oc", args.oc);
  core::Arena arena(workspace.data);
  const Memory memory = take(arena, schedule);
  with_instance(context, [&]<class T, class Config>(T, Config) {
    const AttendParameters<T> parameters = make_parameters<T>(context, args, schedule, memory);
    fill_fragment_table(with_lengths(context.key, args.lengths.key), schedule.batches, memory.table,
                        memory.arrivals, schedule.arrivals, stream);
    attend_kernel<T, Config><<<static_cast<unsigned>(schedule.blocks), Config::kThreads,
                               Config::kSharedBytes, stream>>>(parameters);
    check(cudaGetLastError(), "attend");
  });
}

}  // namespace vidsparse::cuda::sm90
