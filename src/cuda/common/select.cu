// Scores of pooled tensors, exact top k, bitmap and coarse output in one kernel. A thread block
// takes kRows query tiles of one head:
//   1. scores   kc passes through shared memory in chunks of 64 tiles, split into two bf16 planes
//               (split.cuh); the products go to the block's score rows, as ordered keys;
//   2. rows     a warp a row: cut, bitmap, softmax in place (select_row.cuh);
//   3. coarse   vc passes like kc, times the rows' weights.
// Score rows lie in shared memory, or in workspace where they outgrow it; then blocks are few and
// take one strip of rows after the other.

#include <algorithm>

#include "core/workspace.hpp"
#include "cuda/common/select_row.cuh"
#include "cuda/common/split.cuh"
#include "cuda/common/stages.hpp"
#include "cuda/ptx/warp_mma.cuh"

namespace vidsparse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 64;  // key tiles staged at once

struct SelectParameters {
  Side query;
  Side key;
  Tensor<const float> qc, kc, vc;  // [B, heads, N, D]
  Tensor<float> oc;                // [B, H, Nq, D]; absent: scores and selection only
  Tensor<float> coarse_max;        // [B, H, Nq], optional
  Tensor<float> coarse_sum;
  bool aligned_q, aligned_k, aligned_v, aligned_oc;
  std::uint32_t* mask;  // 32-bit words
  const std::uint32_t* always;
  std::int64_t mask_batch, mask_head, always_batch, always_head;
  int row_words;  // 32-bit words of a bitmap row
  int heads;
  int group;
  int top_k;
  bool exempt;
  float scale;
  int strips;              // of kRows query tiles, a head
  std::int64_t items;      // strips of all heads and batch entries
  std::uint32_t* scratch;  // [blocks][kRows][pitch], where rows are not on chip
};

/// Words from one score row to the next: padded to whole chunks, and by 8 so that the fragments of
/// a warp's product fall into different banks.
constexpr int score_pitch(int tiles) { return (tiles + kChunk - 1) / kChunk * kChunk + 8; }

/// A thread block's shared memory.
template <int kD, int kRows>
struct Shared {
  static constexpr int kPlanePitch = kD + 8;  // bf16; 16 bytes apart modulo 128 for ldmatrix
  std::uint16_t planes[2][kChunk][kPlanePitch];
  float max[kRows];
  float sum[kRows];
  // Then present and candidate words [row_words] each, then score rows if they are on chip.
  static std::size_t bytes(int tiles, int row_words, bool on_chip) {
    return sizeof(Shared) + 2 * sizeof(std::uint32_t) * row_words +
           (on_chip ? sizeof(std::uint32_t) * kRows * score_pitch(tiles) : 0);
  }
};

/// A chunk of pooled rows on its way to shared memory.
template <int kD>
struct Chunk {
  static constexpr int kParts = kChunk * kD / 4 / kThreads;
  float4 parts[kParts];

  /// Rows first.. of a head; rows from `rows` on, and those not in `present` (may be null), are 0.
  __device__ void load(const float* head, std::int64_t stride, bool aligned, int first, int rows,
                       const std::uint32_t* present) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int part = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = first + part / (kD / 4);
      parts[i] = make_float4(0, 0, 0, 0);
      if (row >= rows) continue;
      if (present != nullptr && ((present[row / 32] >> (row % 32)) & 1U) == 0) continue;
      const float* from = head + row * stride + part % (kD / 4) * 4;
      if (aligned) {
        parts[i] = __ldg(reinterpret_cast<const float4*>(from));
      } else {
        parts[i] = make_float4(from[0], from[1], from[2], from[3]);
      }
    }
  }

  /// Splits into the planes; whether everything was finite.
  template <class Planes>
  __device__ bool store(Planes& planes) const {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int part = i * kThreads + static_cast<int>(threadIdx.x);
      const float4& four = parts[i];
      finite = finite && is_finite(four.x) && is_finite(four.y) && is_finite(four.z) &&
               is_finite(four.w);
      const SplitPair front = split(four.x, four.y);
      const SplitPair back = split(four.z, four.w);
      const int row = part / (kD / 4);
      const int column = part % (kD / 4) * 4;
      *reinterpret_cast<uint2*>(&planes[0][row][column]) = make_uint2(front.high, back.high);
      *reinterpret_cast<uint2*>(&planes[1][row][column]) = make_uint2(front.low, back.low);
    }
    return finite;
  }
};

/// A fragments of the 16 query rows of a warp, high and low parts.
template <int kD>
struct QueryFragments {
  std::uint32_t high[kD / 16][4];
  std::uint32_t low[kD / 16][4];
};

/// One thread block at work on strips of query tiles.
template <int kD, int kRows>
class Strip {
 public:
  __device__ Strip(const SelectParameters& parameters, Shared<kD, kRows>& shared,
                   std::uint32_t* words, std::uint32_t* scores)
      : p_(parameters),
        shared_(shared),
        present_(words),
        candidates_(words + parameters.row_words),
        scores_(scores),
        pitch_(score_pitch(parameters.key.tiles)),
        tiles_(parameters.key.tiles),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run(std::int64_t item) {
    const std::int64_t pair = item / p_.strips;
    batch_ = static_cast<int>(pair / p_.heads);
    head_ = static_cast<int>(pair % p_.heads);
    first_ = static_cast<int>(item % p_.strips) * kRows;
    rows_ = min(kRows, p_.query.tiles - first_);
    list_tiles();
    score();
    finish_rows();
    if (p_.oc) coarse();
  }

 private:
  static constexpr int kHeights = kRows / 16;        // warps side by side along the rows
  static constexpr int kWidths = kWarps / kHeights;  // and along the columns

  __device__ const float* keys_of_head(const Tensor<const float>& pooled) const {
    return pooled.row(batch_, 0, head_ / p_.group);
  }

  /// Which key tiles are there, and which the top k is chosen from.
  __device__ void list_tiles() {
    for (int word = warp_; word < p_.row_words; word += kWarps) {
      const int tile = word * 32 + lane_;
      const bool there = tile < tiles_ && p_.key.valid_tokens(batch_, tile) > 0;
      const bool candidate = there && !(p_.exempt && p_.key.is_plain(tile));
      const std::uint32_t present = __ballot_sync(kAllLanes, there);
      const std::uint32_t candidates = __ballot_sync(kAllLanes, candidate);
      if (lane_ == 0) {
        present_[word] = present;
        candidates_[word] = candidates;
      }
    }
    __syncthreads();
  }

  /// The address of this lane's row in a quadruple of 8x8 matrices: high and low plane of two
  /// neighbours along `across` (rows of the planes) or along the columns.
  __device__ std::uint32_t planes_at(int row, int column, bool across) const {
    const int matrix = lane_ / 8;
    const int beside = matrix % 2 * 8;
    return ptx::shared_address(&shared_.planes[matrix / 2][row + lane_ % 8 + (across ? beside : 0)]
                                              [column + (across ? 0 : beside)]);
  }

  __device__ bool load_queries(QueryFragments<kD>& fragments) {
    Chunk<kD> chunk;
    chunk.load(p_.qc.row(batch_, first_, head_), p_.qc.row_stride, p_.aligned_q, 0, rows_, nullptr);
    const bool finite = chunk.store(shared_.planes);
    const bool all_finite = __syncthreads_and(finite) != 0;
    const int row = warp_ % kHeights * 16 + lane_ % 16;
    const int column = lane_ / 16 * 8;
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      ptx::ldmatrix_x4(fragments.high[k],
                       ptx::shared_address(&shared_.planes[0][row][k * 16 + column]));
      ptx::ldmatrix_x4(fragments.low[k],
                       ptx::shared_address(&shared_.planes[1][row][k * 16 + column]));
    }
    __syncthreads();
    return all_finite;
  }

  __device__ void score() {
    QueryFragments<kD> query;
    const bool finite_queries = load_queries(query);
    const float* head = keys_of_head(p_.kc);
    Chunk<kD> chunk;
    chunk.load(head, p_.kc.row_stride, p_.aligned_k, 0, tiles_, present_);
    for (int first = 0; first < tiles_; first += kChunk) {
      const bool finite = __syncthreads_and(chunk.store(shared_.planes)) != 0;
      chunk.load(head, p_.kc.row_stride, p_.aligned_k, first + kChunk, tiles_, present_);
#pragma unroll
      for (int i = 0; i < kHeights; ++i) score_tiles(query, first, warp_ / kHeights * kHeights + i);
      __syncthreads();
      if (!finite || !finite_queries) score_plainly(first);
    }
    __syncthreads();
  }

  /// 16 rows times the eight tiles `eight` of the chunk.
  __device__ void score_tiles(const QueryFragments<kD>& query, int first, int eight) {
    float sums[3][4] = {};  // high * high, high * low, low * high: chains that do not wait
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      std::uint32_t key[4];
      ptx::ldmatrix_x4(key, planes_at(eight * 8, k * 16, false));
      ptx::mma_m16n8k16(sums[0], query.high[k], key[0], key[1]);
      ptx::mma_m16n8k16(sums[1], query.high[k], key[2], key[3]);
      ptx::mma_m16n8k16(sums[2], query.low[k], key[0], key[1]);
    }
    const int row = warp_ % kHeights * 16 + lane_ / 4;
    const int column = first + eight * 8 + lane_ % 4 * 2;
    std::uint32_t keys[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      keys[i] = key_at(column + i % 2, (sums[0][i] + (sums[1][i] + sums[2][i])) * p_.scale);
    }
    *reinterpret_cast<uint2*>(score_row(row) + column) = make_uint2(keys[0], keys[1]);
    *reinterpret_cast<uint2*>(score_row(row + 8) + column) = make_uint2(keys[2], keys[3]);
  }

  /// The same for a chunk that holds infinities or NaN, which do not survive splitting.
  __device__ void score_plainly(int first) {
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * kChunk; i += kThreads) {
      const int row = i / kChunk;
      const int tile = first + i % kChunk;
      if (tile >= tiles_ || !is_present(tile)) continue;
      const float* q = p_.qc.row(batch_, first_ + row, head_);
      const float* k = keys_of_head(p_.kc) + tile * p_.kc.row_stride;
      float sum = 0;
      for (int d = 0; d < kD; ++d) sum = fmaf(q[d], k[d], sum);
      score_row(row)[tile] = key_of(sum * p_.scale);
    }
  }

  __device__ bool is_present(int tile) const {
    return ((present_[tile / 32] >> (tile % 32)) & 1U) != 0;
  }
  __device__ std::uint32_t key_at(int tile, float score) const {
    return tile < tiles_ && is_present(tile) ? key_of(score) : kNoScore;
  }
  __device__ std::uint32_t* score_row(int row) const {
    return scores_ + static_cast<std::int64_t>(row) * pitch_;
  }

  __device__ void finish_rows() {
    int candidates = 0;
    bool restricted = false;
    for (int word = lane_; word < p_.row_words; word += 32) {
      candidates += __popc(candidates_[word]);
      restricted = restricted || candidates_[word] != present_[word];
    }
    candidates = static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(candidates)));
    restricted = __any_sync(kAllLanes, restricted) != 0;
    for (int r = warp_; r < rows_; r += kWarps) {
      const ScoreRow row = {score_row(r), tiles_, present_, candidates_, restricted};
      const int tile = first_ + r;
      const RowRange range = range_of(row, lane_);
      std::uint32_t* mask = p_.mask + batch_ * p_.mask_batch + head_ * p_.mask_head +
                            static_cast<std::int64_t>(tile) * p_.row_words;
      if (p_.query.is_plain(tile)) {
        write_all_bits(row, mask, p_.row_words, lane_);
      } else {
        const std::uint32_t* always = nullptr;
        if (p_.always != nullptr) {
          always = p_.always + batch_ * p_.always_batch + head_ * p_.always_head +
                   static_cast<std::int64_t>(tile) * p_.row_words;
        }
        const Cut cut = find_cut(row, range, candidates, p_.top_k, lane_);
        write_bits(row, cut, always, mask, p_.row_words, lane_);
      }
      if (!p_.oc) continue;
      const SoftmaxRow softmax_row = softmax(row, range, pitch_ - 8, lane_);
      if (lane_ == 0) {
        shared_.sum[r] = softmax_row.sum;
        if (p_.coarse_max) *p_.coarse_max.row(batch_, tile, head_) = softmax_row.max;
        if (p_.coarse_sum) *p_.coarse_sum.row(batch_, tile, head_) = softmax_row.sum;
      }
    }
    __syncthreads();
  }

  static constexpr int kEights = kD / 8 / kWidths;  // columns of a warp's coarse output / 8

  __device__ void coarse() {
    float out[kEights][4] = {};
    bool finite = true;
    const float* head = keys_of_head(p_.vc);
    Chunk<kD> chunk;
    chunk.load(head, p_.vc.row_stride, p_.aligned_v, 0, tiles_, present_);
    for (int first = 0; first < tiles_; first += kChunk) {
      finite = (__syncthreads_and(chunk.store(shared_.planes)) != 0) && finite;
      chunk.load(head, p_.vc.row_stride, p_.aligned_v, first + kChunk, tiles_, present_);
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) add_tiles(out, first, k * 16);
      __syncthreads();
    }
    if (finite) {
      write_coarse(out);
    } else {
      coarse_plainly();
    }
    __syncthreads();
  }

  /// Adds the weights of 16 key tiles of the chunk times their values.
  __device__ void add_tiles(float (&out)[kEights][4], int first, int tile) {
    const int row = warp_ % kHeights * 16 + lane_ / 4;
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // the A fragment: rows 0, 8, 0, 8 and tiles 0, 0, 8, 8 on
      const uint2 two = *reinterpret_cast<const uint2*>(score_row(row + i % 2 * 8) + first + tile +
                                                        i / 2 * 8 + lane_ % 4 * 2);
      high[i] = __byte_perm(two.x, two.y, 0x7632);
      low[i] = __byte_perm(two.x, two.y, 0x5410);
    }
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
      std::uint32_t value[4];
      ptx::ldmatrix_x4_trans(value,
                             planes_at(tile, (warp_ / kHeights * kEights + eight) * 8, true));
      ptx::mma_m16n8k16(out[eight], high, value[0], value[1]);
      ptx::mma_m16n8k16(out[eight], high, value[2], value[3]);
      ptx::mma_m16n8k16(out[eight], low, value[0], value[1]);
    }
  }

  __device__ void write_coarse(const float (&out)[kEights][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_ % kHeights * 16 + lane_ / 4 + half * 8;
      if (row >= rows_) continue;
      const float share = 1.0f / shared_.sum[row];
      const bool weightless = shared_.sum[row] == 0.0f;
      float* to = p_.oc.row(batch_, first_ + row, head_);
#pragma unroll
      for (int eight = 0; eight < kEights; ++eight) {
        const int column = (warp_ / kHeights * kEights + eight) * 8 + lane_ % 4 * 2;
        const float x = weightless ? 0.0f : out[eight][half * 2] * share;
        const float y = weightless ? 0.0f : out[eight][half * 2 + 1] * share;
        if (p_.aligned_oc) {
          *reinterpret_cast<float2*>(to + column) = make_float2(x, y);
        } else {
          to[column] = x, to[column + 1] = y;
        }
      }
    }
  }

  __device__ void coarse_plainly() {
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * kD; i += kThreads) {
      const int row = i / kD;
      const int d = i % kD;
      float sum = 0;
      for (int tile = 0; tile < tiles_; ++tile) {
        if (!is_present(tile)) continue;
        const float value = keys_of_head(p_.vc)[tile * p_.vc.row_stride + d];
        sum = fmaf(joined(score_row(row)[tile]), value, sum);
      }
      const float total = shared_.sum[row];
      p_.oc.row(batch_, first_ + row, head_)[d] = total == 0.0f ? 0.0f : sum / total;
    }
  }

  const SelectParameters& p_;
  Shared<kD, kRows>& shared_;
  std::uint32_t* present_;
  std::uint32_t* candidates_;
  std::uint32_t* scores_;
  int pitch_;
  int tiles_;
  int warp_;
  int lane_;
  int batch_ = 0;
  int head_ = 0;
  int first_ = 0;
  int rows_ = 0;
};

template <int kD, int kRows, bool kOnChip>
__global__ void __launch_bounds__(kThreads, 2)
    select_kernel(const __grid_constant__ SelectParameters parameters) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<kD, kRows>*>(memory);
  auto* words = reinterpret_cast<std::uint32_t*>(memory + sizeof(Shared<kD, kRows>));
  const std::int64_t rows = static_cast<std::int64_t>(kRows) * score_pitch(parameters.key.tiles);
  std::uint32_t* scores =
      kOnChip ? words + 2 * parameters.row_words : parameters.scratch + blockIdx.x * rows;
  Strip<kD, kRows> strip(parameters, shared, words, scores);
  for (std::int64_t item = blockIdx.x; item < parameters.items; item += gridDim.x) strip.run(item);
}

/// How a problem's select runs.
struct SelectShape {
  int rows;
  bool on_chip;
  std::int64_t strips;
  std::int64_t items;
  std::int64_t blocks;
  std::size_t shared_bytes;
};

template <int kRows>
std::size_t shared_bytes_of(const Context& context, int row_words, bool on_chip) {
  return context.head_dim() == 64
             ? Shared<64, kRows>::bytes(context.key.tiles, row_words, on_chip)
             : Shared<128, kRows>::bytes(context.key.tiles, row_words, on_chip);
}

SelectShape shape_of(const Context& context) {
  const MaskShape mask = {1, 1, 1, context.key.tiles};
  const int row_words = static_cast<int>(mask.row_words()) * 2;
  const auto room = static_cast<std::size_t>(context.shared_bytes);
  SelectShape shape{};
  shape.rows = 32;
  shape.on_chip = true;
  shape.shared_bytes = shared_bytes_of<32>(context, row_words, true);
  if (shape.shared_bytes > room) {
    shape.rows = 16;
    shape.shared_bytes = shared_bytes_of<16>(context, row_words, true);
  }
  if (shape.shared_bytes > room) {
    shape.on_chip = false;
    shape.shared_bytes = shared_bytes_of<16>(context, row_words, false);
  }
  shape.strips = (context.query.tiles + shape.rows - 1) / shape.rows;
  shape.items = context.batch() * context.heads() * shape.strips;
  // Off chip, as many blocks as run at once: each needs scratch.
  const std::int64_t most = shape.on_chip ? INT32_MAX : 2 * context.multiprocessors;
  shape.blocks = std::min(shape.items, most);
  return shape;
}

std::int64_t scratch_words(const Context& context, const SelectShape& shape) {
  return shape.on_chip ? 0 : shape.blocks * shape.rows * score_pitch(context.key.tiles);
}

/// Calls visit with the kernel for a head_dim and shape.
template <int kD, class Visit>
void with_kernel(const SelectShape& shape, Visit&& visit) {
  if (!shape.on_chip) return visit(select_kernel<kD, 16, false>);
  if (shape.rows == 16) return visit(select_kernel<kD, 16, true>);
  return visit(select_kernel<kD, 32, true>);
}

template <class Visit>
void with_kernel(const Context& context, const SelectShape& shape, Visit&& visit) {
  if (context.head_dim() == 64) return with_kernel<64>(shape, visit);
  return with_kernel<128>(shape, visit);
}

}  // namespace

void prepare_select(const Context& context) {
  with_kernel(context, shape_of(context), [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               context.shared_bytes),
          "select");
  });
}

std::size_t select_bytes(const Context& context, const SelectArgs&) {
  core::Arena arena(nullptr);
  arena.take<std::uint32_t>(scratch_words(context, shape_of(context)));
  return arena.used();
}

void select(const Context& context, const SelectArgs& args, Workspace workspace,
            cudaStream_t stream) {
  const SelectShape shape = shape_of(context);
  if (shape.items == 0) return;
  const Selection& selection = args.selection;
  SelectParameters p{};
  p.query = with_lengths(context.query, args.lengths.query);
  p.key = with_lengths(context.key, args.lengths.key);
  p.qc = by_head<const float>(args.qc);
  p.kc = by_head<const float>(args.kc);
  p.aligned_q = rows_aligned(args.qc);
  p.aligned_k = rows_aligned(args.kc);
  if (args.oc) {
    p.vc = by_head<const float>(args.vc);
    p.oc = by_head<float>(args.oc);
    p.aligned_v = rows_aligned(args.vc);
    p.aligned_oc = rows_aligned(args.oc);
    if (args.coarse_max) p.coarse_max = by_head<float>(args.coarse_max);
    if (args.coarse_sum) p.coarse_sum = by_head<float>(args.coarse_sum);
  }
  p.mask = reinterpret_cast<std::uint32_t*>(args.mask.words);
  p.mask_batch = args.mask.batch_stride * 2;
  p.mask_head = args.mask.head_stride * 2;
  p.always = reinterpret_cast<const std::uint32_t*>(selection.always.words);
  p.always_batch = selection.always.batch_stride * 2;
  p.always_head = selection.always.head_stride * 2;
  p.row_words = static_cast<int>(args.mask.shape.row_words()) * 2;
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
    kernel<<<static_cast<unsigned>(shape.blocks), kThreads, shape.shared_bytes, stream>>>(p);
  });
  check(cudaGetLastError(), "select");
}

}  // namespace vidsparse::cuda
