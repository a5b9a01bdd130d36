// Scores of pooled tensors, exact top k, bitmap and coarse output in one kernel. A thread block
// takes 16 to 64 query tiles of one head (select_shape.hpp, select_work.cuh):
//   1. scores   products on tensor cores by split bf16 (pooled_planes.hpp) go to the block's score
//               rows, as ordered keys (select_scores.cuh);
//   2. rows     a warp a row: top k, bitmap, softmax in place (select_row.cuh);
//   3. coarse   the rows' weights times vc (select_coarse.cuh).
// Score rows lie in shared memory, or in workspace where they outgrow it; then blocks are few and
// take one strip of rows after the other.

#include "core/workspace.hpp"
#include "cuda/common/select_config.hpp"
#include "cuda/common/select_work.cuh"
#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {
namespace {

template <class Config, bool kOnChip>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    select_kernel(const __grid_constant__ SelectParameters parameters) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  auto* words = reinterpret_cast<std::uint32_t*>(memory + sizeof(typename Config::Shared));
  const std::int64_t rows =
      static_cast<std::int64_t>(Config::kRows) * Config::score_pitch(parameters.key.tiles);
  std::uint32_t* scores =
      kOnChip ? words + 2 * parameters.row_words : parameters.scratch + blockIdx.x * rows;
  SelectWork<SelectStrip<Config, kOnChip>> work(parameters, shared, words, scores);
  for (std::int64_t item = blockIdx.x; item < parameters.items; item += gridDim.x) work.run(item);
}

template <class Visit>
void with_kernel(const Context& context, Visit&& visit) {
  const SelectShape& shape = context.select;
  with_select_config(context.head_dim(), shape.block, [&]<class Config>(Config) {
    if constexpr (SelectBlock{Config::kRows, Config::kThreads} == kOffChip) {
      if (!shape.on_chip) return visit(select_kernel<Config, false>);
    }
    visit(select_kernel<Config, true>);
  });
}

}  // namespace

void prepare_select(const Context& context) {
  with_kernel(context, [&](auto kernel) { allow_shared(kernel, context.shared_bytes, "select"); });
}

std::size_t select_bytes(const Context& context) {
  core::Arena arena(nullptr);
  arena.take<std::uint32_t>(context.select.scratch_words);
  return arena.used();
}

void select(const Context& context, const SelectArgs& args, const PooledPlanes& planes,
            Workspace workspace, cudaStream_t stream) {
  const SelectShape& shape = context.select;
  if (shape.items == 0) return;
  const Selection& selection = args.selection;
  SelectParameters p{};
  p.query = with_lengths(context.query, args.lengths.query);
  p.key = with_lengths(context.key, args.lengths.key);
  p.pooled = planes;
  if (args.oc) {
    p.oc = by_head<float>(args.oc);
    if (args.coarse_max) p.coarse_max = by_head<float>(args.coarse_max);
    if (args.coarse_sum) p.coarse_sum = by_head<float>(args.coarse_sum);
  }
  p.mask = reinterpret_cast<std::uint32_t*>(args.mask.words);
  p.mask_batch = args.mask.batch_stride * 2;
  p.mask_head = args.mask.head_stride * 2;
  p.always = reinterpret_cast<const std::uint32_t*>(selection.always.words);
  p.always_batch = selection.always.batch_stride * 2;
  p.always_head = selection.always.head_stride * 2;
  p.row_words = shape.row_words;
  p.heads = static_cast<int>(context.heads());
  p.group = static_cast<int>(context.group());
  p.top_k = static_cast<int>(core::resolve_top_k(selection, context.setting->key));
  p.exempt = selection.prefix_mode == PrefixMode::exempt;
  if (!p.exempt) p.top_k += context.key.plain_tiles;
  p.scale = static_cast<float>(context.scale(args.scale));
  p.strips = static_cast<int>(shape.strips);
  p.items = shape.items;
  p.scratch = core::Arena(workspace.data).take<std::uint32_t>(shape.scratch_words);
  with_kernel(context, [&](auto kernel) {
    kernel<<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.block.threads),
             shape.shared_bytes, stream>>>(p);
  });
  check(cudaGetLastError(), "select");
}

}  // namespace vidsparse::cuda
