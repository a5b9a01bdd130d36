#include "cpu/backward_packs.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kPackBytes = 128e6;        ///< of packs and fp32 gradients, beyond one key head
constexpr std::int64_t kTilesOfChunk = 32;  ///< fewer would load keys for too few pairs
constexpr std::int64_t kMostChunks = 16;
constexpr std::int64_t kUnitsOfRound = 32;  ///< enough for the threads of a socket

const float* row_of(const TensorRef& tensor, std::int64_t b, std::int64_t head, std::int64_t tile) {
  if (!tensor) return nullptr;
  return static_cast<const float*>(tensor.data) + tensor.offset(b, head, tile);
}

}  // namespace

BackwardPacks::BackwardPacks(core::Arena& arena, const Context& context, const BackwardArgs& args,
                             const float* delta, const CoarseGradients& coarse)
    : context_(context),
      kernels_(*context.kernels),
      args_(args),
      delta_of_tokens_(delta),
      coarse_(coarse),
      d_(context.head_dim()),
      words_(context.row_words()),
      depth_(context.dot_bf16() ? words_ : d_),
      scale_(static_cast<float>(context.scale(args.scale))) {
  const std::int64_t batch = context.batch();
  query_count_words_ =
      arena.take<std::int32_t>(context.query.count_words(batch, args.lengths.query));
  key_count_words_ = arena.take<std::int32_t>(context.key.count_words(batch, args.lengths.key));
  const std::int64_t tiles = std::min(context.query.tiles(), context.key.tiles());
  chunks_ = std::clamp<std::int64_t>(tiles / kTilesOfChunk, 1, kMostChunks);

  const std::int64_t words = context.query.slots() * words_;
  const std::int64_t elements = element_offset(1, 0);
  const std::int64_t gradient = context.query.slots() * d_;
  const std::int64_t key_gradient = context.key.slots() * d_;
  const double bytes =
      4.0 * static_cast<double>(context.group() * (2 * words + 2 * elements + gradient) +
                                2 * key_gradient);
  const std::int64_t fitting = bytes > 0 ? static_cast<std::int64_t>(kPackBytes / bytes) : 1;
  const std::int64_t wanted = (kUnitsOfRound + chunks_ - 1) / chunks_;
  packed_heads_ = std::clamp<std::int64_t>(std::min(fitting, wanted), 1,
                                           std::max<std::int64_t>(1, batch * context.key_heads()));

  const std::int64_t heads = packed_heads_ * context.group();
  q_t_ = arena.take<std::uint32_t>(heads * words);
  dout_t_ = arena.take<std::uint32_t>(heads * words);
  q_ = arena.take<std::uint32_t>(heads * elements);
  dout_ = arena.take<std::uint32_t>(heads * elements);
  lse_ = arena.take<float>(heads * context.query.slots());
  delta_ = arena.take<float>(heads * context.query.slots());
  dq_t_ = arena.take<float>(heads * gradient);
  dk_ = arena.take<float>(packed_heads_ * key_gradient);
  dv_ = arena.take<float>(packed_heads_ * key_gradient);
  rounds_ = arena.take<std::int32_t>(packed_heads_ * chunks_);
  core::Arena one(nullptr);
  lay_out_scratch(one);
  scratch_bytes_ = one.used();
  scratch_ = arena.take<std::byte>(static_cast<std::int64_t>(scratch_bytes_) *
                                   context.setting->parallel.concurrency());
  if (scratch_ == nullptr) return;
  query_counts_ = context.query.counts(batch, args.lengths.query, query_count_words_);
  key_counts_ = context.key.counts(batch, args.lengths.key, key_count_words_);
}

BackwardScratch BackwardPacks::lay_out_scratch(core::Arena& arena) const {
  const std::int64_t depth = std::max(d_, words_);
  BackwardScratch scratch;
  scratch.tokens = arena.take<std::int64_t>(context_.slots_of_tile());
  scratch.k = arena.take<std::uint32_t>(kKeyRows * depth);
  scratch.v = arena.take<std::uint32_t>(kKeyRows * depth);
  scratch.k_t = arena.take<std::uint32_t>(kKeyRows * depth);
  for (PairScratch& pair : scratch.pair) {
    pair.s = arena.take<float>(kKeyRows * kFragment);
    pair.dp = arena.take<float>(kKeyRows * kFragment);
    const std::int64_t halves = context_.dot_bf16() ? kKeyRows * kFragment : 0;
    pair.p = arena.take<std::uint16_t>(halves);
    pair.ds = arena.take<std::uint16_t>(halves);
    pair.ds_pairs = arena.take<std::uint32_t>(halves / 2);
  }
  scratch.expanded = arena.take<float>((context_.expands() ? 4 * kBatch : 1) * kFragment * d_);
  return scratch;
}

BackwardScratch BackwardPacks::scratch(int worker) const {
  core::Arena arena(scratch_ + static_cast<std::size_t>(worker) * scratch_bytes_);
  return lay_out_scratch(arena);
}

PackedHead BackwardPacks::query_head(std::int64_t first, std::int64_t index) const {
  const std::int64_t pair = first + index / context_.group();
  return {index, pair / context_.key_heads(),
          pair % context_.key_heads() * context_.group() + index % context_.group()};
}

void BackwardPacks::pack_queries(const PackedHead& at, std::int64_t tile,
                                 const BackwardScratch& scratch) const {
  const std::int64_t count = query_count(at.batch, tile);
  context_.query.gather(tile, count, scratch.tokens);
  const HeadRows<const void*> q(args_.q, at.batch, at.head);
  const HeadRows<const void*> dout(args_.dout, at.batch, at.head);
  const float* delta =
      delta_of_tokens_ + (at.batch * context_.heads() + at.head) * context_.query.layout().tokens();
  for (std::int64_t first = 0; first < count; first += kFragment) {
    const int here = static_cast<int>(std::min<std::int64_t>(kFragment, count - first));
    const int width = width_of(here, context_.query);
    const std::int64_t slot = context_.query.slot(tile) + first;
    const std::int64_t* tokens = scratch.tokens + first;
    float* lse = lse_ + at.index * context_.query.slots() + slot;
    float* deltas = delta_ + at.index * context_.query.slots() + slot;
    for (int i = 0; i < width; ++i) {
      lse[i] = i < here ? lse_of(at, tokens[i]) : kInfinity;
      deltas[i] = lse[i] == kInfinity ? 0.0f : delta[tokens[i]];
    }
    pack(q, tokens, here, width, lse, q_t_ + word_offset(at.index, slot),
         q_ + element_offset(at.index, slot));
    pack(dout, tokens, here, width, lse, dout_t_ + word_offset(at.index, slot),
         dout_ + element_offset(at.index, slot));
    std::memset(dq_t_ + query_offset(at.index, slot), 0,
                static_cast<std::size_t>(width * d_) * sizeof(float));
  }
}

/// +inf makes P and all gradients 0 where nothing was selected.
float BackwardPacks::lse_of(const PackedHead& at, std::int64_t token) const {
  const float lse =
      static_cast<const float*>(args_.lse.data)[args_.lse.offset(at.batch, at.head, token)];
  return lse == -kInfinity ? kInfinity : lse;
}

/// Both B operands of a fragment's rows; zeros where lse is +inf.
void BackwardPacks::pack(const HeadRows<const void*>& source, const std::int64_t* tokens, int count,
                         int width, const float* lse, std::uint32_t* transposed,
                         std::uint32_t* straight) const {
  const void* rows[kFragment];
  source.collect(tokens, count, rows);
  for (int i = 0; i < count; ++i) {
    if (lse[i] == kInfinity) rows[i] = kZeroRow;
  }
  if (context_.dtype() == DType::f32) {
    kernels_.transpose_words(rows, count, d_, transposed, width, width, d_);
    pack_rows_f32(rows, count, d_, reinterpret_cast<float*>(straight), width);
  } else {
    kernels_.transpose_words(rows, count, d_ / 2, transposed, width, width, words_);
    kernels_.interleave_rows(rows, count, d_, straight, width / 2);
  }
}

void BackwardPacks::clear_keys(std::int64_t index, std::int64_t tile) const {
  const std::int64_t begin = key_offset(index, context_.key.slot(tile));
  const std::int64_t end = key_offset(index, context_.key.slot(tile + 1));
  std::fill(dk_ + begin, dk_ + end, 0.0f);
  std::fill(dv_ + begin, dv_ + end, 0.0f);
}

QueryOperands BackwardPacks::queries(std::int64_t index, std::int64_t tile,
                                     std::int64_t first) const {
  const std::int64_t slot = context_.query.slot(tile) + first;
  QueryOperands q{};
  q.q_t = q_t_ + word_offset(index, slot);
  q.dout_t = dout_t_ + word_offset(index, slot);
  q.q = q_ + element_offset(index, slot);
  q.dout = dout_ + element_offset(index, slot);
  q.lse = lse_ + index * context_.query.slots() + slot;
  q.delta = delta_ + index * context_.query.slots() + slot;
  q.dq_t = dq_t_ + query_offset(index, slot);
  return q;
}

KeyOperands BackwardPacks::load_keys(std::int64_t pair, std::int64_t index, std::int64_t tile,
                                     std::int64_t begin, std::int64_t count,
                                     const BackwardScratch& scratch) const {
  const std::int64_t b = pair / context_.key_heads();
  const std::int64_t g = pair % context_.key_heads();
  const int valid = static_cast<int>(count);
  const int rows = width_of(count, context_.key);
  context_.key.gather(tile, begin + count, scratch.tokens);
  const std::int64_t* tokens = scratch.tokens + begin;
  load_rows(HeadRows<const void*>(args_.k, b, g), tokens, valid, rows, scratch.k);
  load_rows(HeadRows<const void*>(args_.v, b, g), tokens, valid, rows, scratch.v);
  transpose_keys(rows, scratch);
  const std::int64_t offset = key_offset(index, context_.key.slot(tile) + begin);
  return {scratch.k, scratch.v, scratch.k_t, dk_ + offset, dv_ + offset, rows, valid};
}

/// A operand: rows of words, zero past the valid ones.
void BackwardPacks::load_rows(const HeadRows<const void*>& source, const std::int64_t* tokens,
                              int valid, int rows, std::uint32_t* out) const {
  for (int row = 0; row < valid; ++row) {
    std::uint32_t* to = out + static_cast<std::ptrdiff_t>(row) * depth_;
    if (context_.dot_bf16()) {
      std::memcpy(to, source[tokens[row]], static_cast<std::size_t>(d_) * 2);
      std::fill(to + d_ / 2, to + depth_, 0U);
    } else {
      kernels_.widen(context_.dtype(), source[tokens[row]], reinterpret_cast<float*>(to), d_);
    }
  }
  std::fill(out + static_cast<std::ptrdiff_t>(valid) * depth_,
            out + static_cast<std::ptrdiff_t>(rows) * depth_, 0U);
}

void BackwardPacks::transpose_keys(int rows, const BackwardScratch& scratch) const {
  const void* pointers[kKeyRows];
  for (int row = 0; row < rows; ++row) pointers[row] = scratch.k + row * depth_;
  if (!context_.dot_bf16()) {
    kernels_.transpose_words(pointers, rows, d_, scratch.k_t, rows, rows, d_);
    return;
  }
  // Pairs of keys are words: interleave two rows, then transpose words.
  auto* pairs = reinterpret_cast<std::uint32_t*>(scratch.expanded);
  for (int first = 0; first < rows; first += kFragment) {
    const int here = std::min(kFragment, rows - first);
    kernels_.interleave_rows(pointers + first, here, d_, pairs, here / 2);
    for (int column = 0; column < d_; column += kPanel) {
      const int width = std::min(kPanel, d_ - column);
      const void* words[kFragment / 2];
      for (int i = 0; i < here / 2; ++i) words[i] = pairs + column * here / 2 + i * width;
      kernels_.transpose_words(words, here / 2, width, scratch.k_t + column * rows / 2 + first / 2,
                               rows / 2, here / 2, width);
    }
  }
}

void BackwardPacks::finish_queries(const PackedHead& at, std::int64_t tile,
                                   const BackwardScratch& scratch) const {
  const std::int64_t count = query_count(at.batch, tile);
  const std::int64_t capacity = context_.query.capacity(tile);
  context_.query.gather(tile, capacity, scratch.tokens);
  const HeadRows<void*> dq(args_.dq, at.batch, at.head);
  const float* dqc = row_of(coarse_.dqc, at.batch, at.head, tile);
  for (std::int64_t first = 0; first < count; first += kFragment) {
    const int here = static_cast<int>(std::min<std::int64_t>(kFragment, count - first));
    const int width = width_of(here, context_.query);
    const float* dq_t = dq_t_ + query_offset(at.index, context_.query.slot(tile) + first);
    const void* rows[kMaxHeadDim];
    for (int i = 0; i < d_; ++i) rows[i] = dq_t + i * width;
    kernels_.transpose_words(rows, d_, width, reinterpret_cast<std::uint32_t*>(scratch.expanded),
                             d_, d_, width);
    finish(scratch.expanded, scale_, dqc, count, here, scratch.tokens + first, dq);
  }
  clear(dq, scratch.tokens + count, capacity - count);
}

void BackwardPacks::finish_keys(std::int64_t pair, std::int64_t index, std::int64_t tile,
                                const BackwardScratch& scratch) const {
  const std::int64_t b = pair / context_.key_heads();
  const std::int64_t g = pair % context_.key_heads();
  const std::int64_t count = key_count(b, tile);
  const std::int64_t capacity = context_.key.capacity(tile);
  context_.key.gather(tile, capacity, scratch.tokens);
  const HeadRows<void*> dk(args_.dk, b, g);
  const HeadRows<void*> dv(args_.dv, b, g);
  const std::int64_t offset = key_offset(index, context_.key.slot(tile));
  finish(dk_ + offset, scale_, row_of(coarse_.dkc, b, g, tile), count, count, scratch.tokens, dk);
  finish(dv_ + offset, 1.0f, row_of(coarse_.dvc, b, g, tile), count, count, scratch.tokens, dv);
  clear(dk, scratch.tokens + count, capacity - count);
  clear(dv, scratch.tokens + count, capacity - count);
}

/// Rounds `rows` accumulated rows, each with its share of its tile's coarse gradient.
void BackwardPacks::finish(const float* acc, float factor, const float* coarse, std::int64_t count,
                           std::int64_t rows, const std::int64_t* tokens,
                           const HeadRows<void*>& out) const {
  FinishRow row{};
  row.factor = factor;
  row.coarse = coarse;
  row.gate_scalar = 1.0f / static_cast<float>(count);
  row.dtype = context_.dtype();
  row.d = d_;
  for (std::int64_t i = 0; i < rows; ++i) {
    row.acc = acc + i * d_;
    row.out = out[tokens[i]];
    kernels_.finish_row(row);
  }
}

/// Pad slots.
void BackwardPacks::clear(const HeadRows<void*>& out, const std::int64_t* tokens,
                          std::int64_t count) const {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memset(out[tokens[i]], 0, static_cast<std::size_t>(d_) * context_.element());
  }
}

}  // namespace vidsparse::cpu
