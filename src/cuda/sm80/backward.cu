#include "cuda/sm80/backward.hpp"

#include <cstdlib>

#include "core/workspace.hpp"
#include "cuda/common/backward.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/sm80/gradient_kernel.cuh"

namespace vidsparse::cuda::sm80 {
namespace {

/// Calls visit(element, config by key, config by query) for the instances a problem needs.
template <class Visit>
void with_instances(const Context& context, Visit&& visit) {
  const char* shape = std::getenv("SM80_GRADIENT");
  const int number = shape ? std::atoi(shape) : 0;
  const auto by_width = [&]<class T>(T element) {
    if (context.head_dim() == 128) {
      if (number == 0) visit(element, GradientConfig<128, true, 2, 2>{}, GradientConfig<128, false, 2, 2>{});
      if (number == 1) visit(element, GradientConfig<128, true, 1, 2>{}, GradientConfig<128, false, 1, 3>{});
    } else {
      visit(element, GradientConfig<64, true, 2, 3>{}, GradientConfig<64, false, 2, 4>{});
    }
  };
  context.dtype() == DType::f16 ? by_width(__half{}) : by_width(__nv_bfloat16{});
}

/// What lies in the workspace.
struct Memory {
  BackwardParts parts;
  KeyFragment* keys;
  std::int32_t key_batches;  ///< of `keys`
};

std::int32_t fragments_of(const Side& side) { return side.tiles * side.fragments_per_tile; }

Memory take(core::Arena& arena, const Context& context, const BackwardArgs& args) {
  Memory memory;
  memory.parts = take_backward_parts(arena, context, args);
  memory.key_batches = args.lengths.key ? static_cast<std::int32_t>(context.batch()) : 1;
  memory.keys =
      arena.take<KeyFragment>(std::int64_t{fragments_of(context.key)} * memory.key_batches);
  return memory;
}

template <class T>
GradientParameters<T> common_parameters(const Context& context, const BackwardArgs& args,
                                        const Memory& memory, const TileMaskView& mask,
                                        std::int64_t own_heads, const Side& own,
                                        const Side& other) {
  GradientParameters<T> p;
  p.own = own;
  p.other = other;
  const double scale = context.scale(args.scale);
  p.scale = static_cast<float>(scale);
  p.scale_log2 = static_cast<float>(scale * 1.4426950408889634);
  p.norms = memory.parts.rows;
  p.query_fragments = fragments_of(context.query);
  p.mask = reinterpret_cast<const std::uint32_t*>(mask.words);
  p.mask_row = mask.shape.row_words() * 2;
  p.mask_head = mask.head_stride * 2;
  p.mask_batch = mask.batch_stride * 2;
  p.other_fragments = fragments_of(other);
  p.items = {fragments_of(own), static_cast<std::int32_t>(own_heads),
             Divider(static_cast<std::uint32_t>(own.fragments_per_tile))};
  p.query_heads = static_cast<std::int32_t>(context.heads());
  p.group = static_cast<std::int32_t>(context.group());
  return p;
}

template <class T>
GradientParameters<T> parameters_by_key(const Context& context, const BackwardArgs& args,
                                        const Memory& memory) {
  const BackwardParts& parts = memory.parts;
  GradientParameters<T> p = common_parameters<T>(
      context, args, memory, parts.by_key, context.key_heads(),
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
  p.own_table = memory.keys;
  p.own_table_batch = memory.key_batches > 1 ? p.items.fragments : 0;
  p.other_table = parts.queries;
  p.other_table_head = p.query_fragments;
  p.other_table_batch = p.query_fragments * context.heads();
  return p;
}

template <class T>
GradientParameters<T> parameters_by_query(const Context& context, const BackwardArgs& args,
                                          const Memory& memory) {
  const BackwardParts& parts = memory.parts;
  GradientParameters<T> p = common_parameters<T>(
      context, args, memory, args.mask, context.heads(),
      with_lengths(context.query, args.lengths.query), with_lengths(context.key, args.lengths.key));
  p.own_scores = head_rows("q", args.q);
  p.own_weights = head_rows("dout", args.dout);
  p.other_scores = head_rows("k", args.k);
  p.other_weights = head_rows("v", args.v);
  p.d_scores = by_token<T>(args.dq);
  if (parts.dqc) p.coarse_scores = by_head<const float>(parts.dqc);
  p.own_table = parts.queries;
  p.own_table_head = p.query_fragments;
  p.own_table_batch = p.query_fragments * context.heads();
  p.other_table = memory.keys;
  p.other_table_batch = memory.key_batches > 1 ? p.other_fragments : 0;
  return p;
}

template <class T, class Config>
void launch(const GradientParameters<T>& parameters, std::int64_t batch, cudaStream_t stream) {
  const std::int64_t blocks = std::int64_t{parameters.items.fragments} * parameters.items.heads *
                              batch;
  if (blocks == 0) return;
  gradient_kernel<T, Config><<<static_cast<unsigned>(blocks), Config::kThreads,
                               Config::kSharedBytes, stream>>>(parameters);
  check(cudaGetLastError(), "backward");
}

}  // namespace

void prepare_backward(const Context& context) {
  prepare_coarse_backward(context);
  with_instances(context, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    const auto allow = [](auto kernel, int bytes) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
            "cudaFuncSetAttribute");
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "cudaFuncSetAttribute");
    };
    allow(gradient_kernel<T, ByKey>, ByKey::kSharedBytes);
    allow(gradient_kernel<T, ByQuery>, ByQuery::kSharedBytes);
  });
}

std::size_t backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  take(arena, context, args);
  return arena.used();
}

void backward(const Context& context, const BackwardArgs& args, Workspace workspace,
              cudaStream_t stream) {
  core::Arena arena(workspace.data);
  const Memory memory = take(arena, context, args);
  require_aligned_rows("dq", args.dq);
  require_aligned_rows("dk", args.dk);
  require_aligned_rows("dv", args.dv);
  with_instances(context, [&]<class T, class ByKey, class ByQuery>(T, ByKey, ByQuery) {
    const auto by_key = parameters_by_key<T>(context, args, memory);
    const auto by_query = parameters_by_query<T>(context, args, memory);
    begin_backward(context, args, memory.parts, stream);
    fill_fragment_table(with_lengths(context.key, args.lengths.key), memory.key_batches,
                        memory.keys, nullptr, 0, stream);
    launch<T, ByKey>(by_key, context.batch(), stream);
    launch<T, ByQuery>(by_query, context.batch(), stream);
  });
}

}  // namespace vidsparse::cuda::sm80
