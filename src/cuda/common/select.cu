// Scores of pooled tensors, exact top k, bitmap and coarse output in one kernel. A thread block
// takes 32 or 16 query tiles of one head (select_strip.cuh):
//   1. scores   kc passes through shared memory in chunks; products on tensor cores by split bf16
//               (pooled_planes.hpp) go to the block's score rows, as ordered keys;
//   2. rows     a warp a row: top k, bitmap, softmax in place (select_row.cuh);
//   3. coarse   vc passes like kc, times the rows' weights.
// Score rows lie in shared memory, or in workspace where they outgrow it; then blocks are few and
// take one strip of rows after the other.

#include <algorithm>

#include "core/workspace.hpp"
#include "cuda/common/select_strip.cuh"
#include "cuda/common/stages.hpp"

namespace vidsparse::cuda {
namespace {

template <class Config, bool kOnChip>
__global__ void __launch_bounds__(Config::kThreads, 512 / Config::kThreads)
    select_kernel(const __grid_constant__ SelectParameters parameters) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  auto* words = reinterpret_cast<std::uint32_t*>(memory + sizeof(typename Config::Shared));
  const std::int64_t rows =
      static_cast<std::int64_t>(Config::kRows) * Config::score_pitch(parameters.key.tiles);
  std::uint32_t* scores =
      kOnChip ? words + 2 * parameters.row_words : parameters.scratch + blockIdx.x * rows;
  SelectStrip<Config> strip(parameters, shared, words, scores);
  for (std::int64_t item = blockIdx.x; item < parameters.items; item += gridDim.x) strip.run(item);
}

/// How a problem's select runs.
struct SelectShape {
  int rows;
  int threads;
  bool on_chip;
  std::int64_t strips;
  std::int64_t items;
  std::int64_t blocks;
  std::size_t shared_bytes;
};

/// Calls visit with the configuration for a head_dim, rows and threads of a block.
template <class Visit>
auto with_config(const Context& context, int rows, int threads, Visit&& visit) {
  if (context.head_dim() == 64) {
    if (rows == 16) return visit(SelectConfig<64, 16, 256>{});
    return threads == 512 ? visit(SelectConfig<64, 32, 512>{}) : visit(SelectConfig<64, 32, 256>{});
  }
  if (rows == 16) {
    return threads == 512 ? visit(SelectConfig<128, 16, 512>{})
                          : visit(SelectConfig<128, 16, 256>{});
  }
  return threads == 512 ? visit(SelectConfig<128, 32, 512>{}) : visit(SelectConfig<128, 32, 256>{});
}

int row_words(const Context& context) {
  return static_cast<int>(MaskShape{1, 1, 1, context.key.tiles}.row_words()) * 2;
}

SelectShape shape_of(const Context& context) {
  const auto bytes = [&](int rows, int threads, bool on_chip) {
    return with_config(context, rows, threads, [&]<class Config>(Config) {
      return Config::shared_bytes(context.key.tiles, row_words(context), on_chip);
    });
  };
  const auto room = static_cast<std::size_t>(context.shared_bytes);
  SelectShape shape{};
  shape.rows = bytes(32, 256, true) <= room ? 32 : 16;
  // Few warps wait for their own instructions, so a block that has a multiprocessor for itself gets
  // twice the threads.
  constexpr std::size_t kReserved = 1024;  // of shared memory, by the system, a block
  const bool alone = 2 * (bytes(shape.rows, 256, true) + kReserved) > room + kReserved;
  const bool more = alone && bytes(shape.rows, 512, true) <= room;
  shape.threads = more && (shape.rows == 32 || context.head_dim() == 128) ? 512 : 256;
  shape.on_chip = bytes(shape.rows, shape.threads, true) <= room;
  shape.shared_bytes = bytes(shape.rows, shape.threads, shape.on_chip);
  shape.strips = (context.query.tiles + shape.rows - 1) / shape.rows;
  shape.items = context.batch() * context.heads() * shape.strips;
  // Off chip, as many blocks as run at once: each needs scratch.
  const std::int64_t most = shape.on_chip ? INT32_MAX : 2 * context.multiprocessors;
  shape.blocks = std::min(shape.items, most);
  return shape;
}

std::int64_t scratch_words(const Context& context, const SelectShape& shape) {
  if (shape.on_chip) return 0;
  const int pitch = with_config(context, shape.rows, shape.threads, [&]<class Config>(Config) {
    return Config::score_pitch(context.key.tiles);
  });
  return shape.blocks * shape.rows * pitch;
}

template <class Visit>
void with_kernel(const Context& context, const SelectShape& shape, Visit&& visit) {
  with_config(context, shape.rows, shape.threads, [&]<class Config>(Config) {
    if constexpr (Config::kRows == 16 && Config::kThreads == 256) {
      if (!shape.on_chip) return visit(select_kernel<Config, false>);
    }
    visit(select_kernel<Config, true>);
  });
}

}  // namespace

void prepare_select(const Context& context) {
  with_kernel(context, shape_of(context),
              [&](auto kernel) { allow_shared(kernel, context.shared_bytes, "select"); });
}

std::size_t select_bytes(const Context& context) {
  core::Arena arena(nullptr);
  arena.take<std::uint32_t>(scratch_words(context, shape_of(context)));
  return arena.used();
}

void select(const Context& context, const SelectArgs& args, const PooledPlanes& planes,
            Workspace workspace, cudaStream_t stream) {
  const SelectShape shape = shape_of(context);
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
  p.row_words = row_words(context);
  p.heads = static_cast<int>(context.heads());
  p.group = static_cast<int>(context.group());
  p.top_k = static_cast<int>(core::resolve_top_k(selection, context.setting->key));
  p.exempt = selection.prefix_mode == PrefixMode::exempt;
  if (!p.exempt) p.top_k += context.key.plain_tiles;
  p.scale = static_cast<float>(context.scale(args.scale));
  p.strips = static_cast<int>(shape.strips);
  p.items = shape.items;
  p.scratch = core::Arena(workspace.data).take<std::uint32_t>(scratch_words(context, shape));
  with_kernel(context, shape, [&](auto kernel) {
    kernel<<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads),
             shape.shared_bytes, stream>>>(p);
  });
  check(cudaGetLastError(), "select");
}

}  // namespace vidsparse::cuda
