#include "cuda/sm80/attend.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>
#include <utility>

#include "core/workspace.hpp"
#include "cuda/common/attend_problem.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/common/limits.hpp"
#include "cuda/sm80/attend_launch.hpp"
#include "cuda/sm80/blocks.hpp"
#include "cuda/sm80/shape.hpp"

namespace vidsparse::cuda::sm80 {
namespace {

/// Calls visit(element, launch) for the instance a problem and its device need.
template <class Visit>
void with_instance(const Context& context, Shape shape, Visit&& visit) {
  const auto by_width = [&]<class T, Shape kShape>(T element) {
    context.head_dim() == 128 ? visit(element, AttendLaunch<T, 128, kShape>{})
                              : visit(element, AttendLaunch<T, 64, kShape>{});
  };
  const auto by_shape = [&]<class T>(T element) {
    shape == Shape::large ? by_width.template operator()<T, Shape::large>(element)
                          : by_width.template operator()<T, Shape::small>(element);
  };
  context.dtype() == DType::f16 ? by_shape(__half{}) : by_shape(__nv_bfloat16{});
}

KeyFragment* take_table(core::Arena& arena, const Context& context, const AttendArgs& args) {
  return arena.take<KeyFragment>(std::int64_t{context.key.fragments()} *
                                 context.table_batches(args.lengths));
}

}  // namespace

Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key) {
  // The grid of a launch.
  for (const auto& [name, count] :
       {std::pair("heads_q", problem.heads_q), std::pair("batch", problem.batch)}) {
    if (count > ItemBlocks::kMaxRows) {
      return Verdict::no(std::string(name) + ": expected at most 65535, got " +
                         std::to_string(count));
    }
  }
  const Verdict verdict = fits_fragment_table("query", query);  // which the backward walks
  return verdict.ok ? fits_fragment_table("key", key) : verdict;
}

void prepare_attend(const Context& context, Shape shape) {
  with_instance(context, shape, [&]<class T, class Launch>(T, Launch) { Launch::prepare(); });
}

std::size_t attend_bytes(const Context& context, const AttendArgs& args) {
  core::Arena arena(nullptr);
  take_table(arena, context, args);
  return arena.used();
}

void check_attend(const AttendArgs& args) {
  if (args.q.elements() == 0) return;
  require_aligned_rows(args);
  head_rows("q", args.q);
  if (args.k.elements() == 0) return;
  head_rows("k", args.k);
  head_rows("v", args.v);
}

TableWork attend_table(const Context& context, const AttendArgs& args, Workspace workspace) {
  core::Arena arena(workspace.data);
  TableWork work;
  if (context.query.fragments() == 0) return work;
  work.side = with_lengths(context.key, args.lengths.key);
  work.batches = context.table_batches(args.lengths);
  work.table = take_table(arena, context, args);
  return work;
}

void attend(const Context& context, Shape shape, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream) {
  core::Arena arena(workspace.data);
  KeyFragment* table = take_table(arena, context, args);
  with_instance(context, shape, [&]<class T, class Launch>(T, Launch) {
    AttendParameters<T> parameters;
    static_cast<AttendProblem<T>&>(parameters) = make_attend_problem<T>(context, args, table);
    parameters.blocks = ItemBlocks(context.query.text_first(), context.heads());
    const auto [x, y, z] = parameters.blocks.grid(context.batch());
    if (x == 0) return;
    parameters.key = context.key;
    if (args.k.elements() > 0) {  // the pointers of empty tensors may be anything
      parameters.k = head_rows("k", args.k);
      parameters.v = head_rows("v", args.v);
    }
    Launch::run(parameters, {x, y, z}, stream);
  });
}

}  // namespace vidsparse::cuda::sm80
