#include "cuda/sm80/attend.hpp"

#include <cstdlib>
#include <string>
#include <utility>

#include "core/check.hpp"
#include "core/workspace.hpp"
#include "cuda/common/attend_problem.hpp"
#include "cuda/common/fragment_table.cuh"
#include "cuda/sm80/attend_kernel.cuh"

namespace vidsparse::cuda::sm80 {
namespace {

template <class T, class Visit>
void with_shape(const Context& context, Visit&& visit) {
  const char* shape = std::getenv("SM80_SHAPE");
  const int number = shape ? std::atoi(shape) : 0;
  if (context.head_dim() == 128) {
    if (number == 0) visit(T{}, AttendConfig<128, 2, 1, 4>{});
    if (number == 1) visit(T{}, AttendConfig<128, 2, 2, 3>{});
    if (number == 2) visit(T{}, AttendConfig<128, 1, 1, 3>{});
    if (number == 3) visit(T{}, AttendConfig<128, 1, 2, 3>{});
  } else {
    if (number == 0) visit(T{}, AttendConfig<64, 2, 2, 4>{});
    else visit(T{}, AttendConfig<64, 1, 2, 4>{});
  }
}

/// Calls visit(element, config) for the instance a problem needs.
template <class Visit>
void with_instance(const Context& context, Visit&& visit) {
  if (context.dtype() == DType::f16) {
    with_shape<__half>(context, visit);
  } else {
    with_shape<__nv_bfloat16>(context, visit);
  }
}

KeyFragment* take_table(core::Arena& arena, const Context& context, const AttendArgs& args) {
  return arena.take<KeyFragment>(std::int64_t{key_fragments(context)} *
                                 table_batches(context, args));
}

}  // namespace

Verdict can_attend(const Problem& problem, const TileLayout& query, const TileLayout& key) {
  const std::int64_t parts = problem.tile.tokens() / kFragment;
  // Queries are walked too, by the backward.
  for (const auto& [name, layout] : {std::pair("query", &query), std::pair("key", &key)}) {
    const std::string side = name;
    const std::int64_t fragments = layout->tiles() * parts;
    if (fragments > ListedFragment::kMaxFragments) {
      return Verdict::no(side + ": expected at most 2^29 fragments of 64 tokens, got " +
                         std::to_string(fragments));
    }
    if (problem.batch * problem.heads_q * fragments > INT32_MAX) {
      return Verdict::no(side + ": expected fewer than 2^31 fragments of all heads, got " +
                         std::to_string(problem.batch * problem.heads_q * fragments));
    }
    for (const Segment& segment : layout->sequence().segments()) {
      const auto* video = std::get_if<Video>(&segment);
      if (video == nullptr) continue;
      if (video->t > KeyFragment::kMaxFrames || video->h > KeyFragment::kMaxHeight) {
        return Verdict::no(side + ": expected videos of at most 4096 x 65536 (T x H), got " +
                           layout->sequence().to_string());
      }
    }
  }
  return Verdict::yes();
}

void prepare_attend(const Context& context) {
  with_instance(context, [&]<class T, class Config>(T, Config) {
    check(cudaFuncSetAttribute(attend_kernel<T, Config>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes),
          "cudaFuncSetAttribute");
    check(cudaFuncSetAttribute(attend_kernel<T, Config>,
                               cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute");
  });
}

std::size_t attend_bytes(const Context& context, const AttendArgs& args) {
  core::Arena arena(nullptr);
  take_table(arena, context, args);
  return arena.used();
}

void attend(const Context& context, const AttendArgs& args, Workspace workspace,
            cudaStream_t stream) {
  core::Arena arena(workspace.data);
  KeyFragment* table = take_table(arena, context, args);
  with_instance(context, [&]<class T, class Config>(T, Config) {
    AttendParameters<T> parameters;
    static_cast<AttendProblem<T>&>(parameters) = make_attend_problem<T>(context, args, table);
    const std::int64_t blocks =
        std::int64_t{parameters.query_fragments} * context.heads() * context.batch();
    if (blocks == 0) return;
    require_aligned_rows(args);
    parameters.key = context.key;
    parameters.items = {parameters.query_fragments, parameters.heads,
                        parameters.fragments_per_tile};
    parameters.k = head_rows("k", args.k);
    parameters.v = head_rows("v", args.v);
    fill_fragment_table(with_lengths(context.key, args.lengths.key), table_batches(context, args),
                        table, nullptr, 0, stream);
    attend_kernel<T, Config><<<static_cast<unsigned>(blocks), Config::kThreads,
                               Config::kSharedBytes, stream>>>(parameters);
    check(cudaGetLastError(), "attend");
  });
}

}  // namespace vidsparse::cuda::sm80
