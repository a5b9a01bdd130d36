#include "cpu/backward_packs.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kPackBytes = 128e6;        ///< of packs and fp32 gradients, beyond one key head
constexpr std::int64_t kTilesOfChunk = 64;  ///< fewer would load keys for too few pairs
constexpr std::int64_t kMostChunks = 16;
constexpr std::int64_t kUnitsOfWorker = 3;  ///< in a round: enough that nobody waits

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

  slot_words_ = 2 * words_ + 2 * d_ * static_cast<std::int64_t>(context.element()) / 4 + d_;
  const std::int64_t words = context.query.slots() * slot_words_;
  const std::int64_t key_gradient = context.key.slots() * d_;
  const double bytes = 4.0 * static_cast<double>(context.group() * words + 2 * key_gradient);
  const std::int64_t fitting = bytes > 0 ? static_cast<std::int64_t>(kPackBytes / bytes) : 1;
  // How many heads go together changes no result: the order of summands is that of the chunks.
  const std::int64_t units = kUnitsOfWorker * context.setting->parallel.concurrency();
  const std::int64_t wanted = (units + chunks_ - 1) / chunks_;
  packed_heads_ = std::clamp<std::int64_t>(std::min(fitting, wanted), 1,
                                           std::max<std::int64_t>(1, batch * context.key_heads()));

  const std::int64_t heads = packed_heads_ * context.group();
  queries_ = arena.take<std::uint32_t>(heads * words);
  lse_ = arena.take<float>(heads * context.query.slots());
  delta_ = arena.take<float>(heads * context.query.slots());
  fresh_queries_ = arena.take<std::uint8_t>(heads * context.query.slots() / kFlagSlots);
  fresh_keys_ = arena.take<std::uint8_t>(packed_heads_ * context.key.slots() / kFlagSlots);
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
  scratch.keys = arena.take<std::uint32_t>(3 * kKeyRows * depth);
  scratch.pairs = arena.take<std::byte>(PairGradient::scratch_bytes(context_.dot_bf16()));
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
    const std::int64_t* tokens = scratch.tokens + first;
    const QueryOperands to = queries(at.index, tile, first, here);
    auto* lse = const_cast<float*>(to.lse);
    auto* deltas = const_cast<float*>(to.delta);
    for (int i = 0; i < width; ++i) {
      lse[i] = i < here ? lse_of(at, tokens[i]) : kInfinity;
      deltas[i] = lse[i] < kInfinity ? delta[tokens[i]] : 0.0f;  // no gradient of a NaN either
    }
    pack(q, tokens, here, width, lse, to.q_t, to.q);
    pack(dout, tokens, here, width, lse, to.dout_t, to.dout);
    *to.fresh = 1;
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
                         int width, const float* lse, const void* transposed_pack,
                         const void* straight_pack) const {
  auto* transposed = static_cast<std::uint32_t*>(const_cast<void*>(transposed_pack));
  auto* straight = static_cast<std::uint32_t*>(const_cast<void*>(straight_pack));
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

void BackwardPacks::renew_keys(std::int64_t index, std::int64_t tile) const {
  std::fill(key_flag(index, context_.key.slot(tile)), key_flag(index, context_.key.slot(tile + 1)),
            std::uint8_t{1});
}

QueryOperands BackwardPacks::queries(std::int64_t index, std::int64_t tile, std::int64_t first,
                                     int valid) const {
  const std::int64_t slot = context_.query.slot(tile) + first;
  QueryOperands q{};
  q.valid = valid;
  q.width = width_of(valid, context_.query);
  std::uint32_t* next = queries_ + query_offset(index, slot);
  const auto take = [&](std::int64_t words_of_token) {
    std::uint32_t* piece = next;
    next += q.width * words_of_token;
    return piece;
  };
  const std::int64_t plain = d_ * static_cast<std::int64_t>(context_.element()) / 4;
  q.q_t = take(words_);
  q.dout_t = take(words_);
  q.dout = take(plain);
  q.q = take(plain);
  q.dq_t = reinterpret_cast<float*>(take(d_));
  q.fresh = fresh_queries_ + (index * context_.query.slots() + slot) / kFlagSlots;
  q.lse = lse_ + index * context_.query.slots() + slot;
  q.delta = delta_ + index * context_.query.slots() + slot;
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
  std::uint32_t* k = scratch.keys;
  std::uint32_t* v = k + static_cast<std::ptrdiff_t>(rows) * depth_;
  std::uint32_t* k_t = v + static_cast<std::ptrdiff_t>(rows) * depth_;
  load_rows(HeadRows<const void*>(args_.k, b, g), tokens, valid, rows, k);
  load_rows(HeadRows<const void*>(args_.v, b, g), tokens, valid, rows, v);
  const std::int64_t offset = key_offset(index, context_.key.slot(tile) + begin);
  const KeyOperands keys{
      k,    v,    k_t, dk_ + offset, dv_ + offset, key_flag(index, context_.key.slot(tile) + begin),
      rows, valid};
  transpose_keys(keys, k_t, scratch);
  return keys;
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

void BackwardPacks::transpose_keys(const KeyOperands& keys, std::uint32_t* out,
                                   const BackwardScratch& scratch) const {
  const int rows = keys.rows;
  const void* pointers[kKeyRows];
  for (int row = 0; row < rows; ++row) {
    pointers[row] = static_cast<const std::uint32_t*>(keys.k) + row * depth_;
  }
  if (!context_.dot_bf16()) {
    kernels_.transpose_words(pointers, rows, d_, out, rows, rows, d_);
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
      kernels_.transpose_words(words, here / 2, width, out + column * rows / 2 + first / 2,
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
    const QueryOperands q = queries(at.index, tile, first, here);
    if (*q.fresh != 0) std::fill_n(q.dq_t, width * d_, 0.0f);
    const void* rows[kMaxHeadDim];
    for (int i = 0; i < d_; ++i) rows[i] = q.dq_t + i * width;
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
  const std::int64_t slot = context_.key.slot(tile);
  const std::int64_t offset = key_offset(index, slot);
  for (std::int64_t begin = 0; begin < count; begin += kKeyRows) {
    if (*key_flag(index, slot + begin) == 0) continue;
    const std::int64_t rows = std::min<std::int64_t>(kKeyRows, count - begin);
    std::fill_n(dk_ + offset + begin * d_, rows * d_, 0.0f);
    std::fill_n(dv_ + offset + begin * d_, rows * d_, 0.0f);
  }
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
