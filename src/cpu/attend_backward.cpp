#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/workspace.hpp"
#include "cpu/backward.hpp"
#include "cpu/pair_gradient.hpp"
#include "cpu/workers.hpp"

// Backward of the fine branch, deterministic without atomics on data. Key tiles and query tiles of
// a head are cut in C chunks each. A unit (round r, chunk c) walks the key tiles of chunk c and,
// for each, the query tiles of chunk (c + r) % C that selected it. Within a round no two units of a
// head touch the same dK, dV or dQ, and every gradient receives its summands in the order of
// rounds, whoever computes them. A unit waits for the two of the round before that touched its
// data; workers take units in order, so these are under way or done and nothing can deadlock.

namespace vidsparse::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kPackBytes = 128e6;        ///< of packs and fp32 gradients, beyond one key head
constexpr std::int64_t kTilesOfChunk = 32;  ///< fewer would load key tiles for too few pairs
constexpr std::int64_t kMostChunks = 16;
constexpr std::int64_t kUnitsOfRound = 32;  ///< enough for the threads of a socket

struct Scratch {  // per worker
  std::int64_t* tokens;
  std::uint32_t* k;    ///< A operand [kKeyRows][depth]
  std::uint32_t* v;    ///< likewise
  std::uint32_t* k_t;  ///< A operand [D][kKeyRows]
  PairScratch pair;
  /// Q^T, dO^T, Q, dO of a fragment in fp32; rows of a finished dQ; pairs of rows on their way to
  /// K^T.
  float* expanded;
};

struct Space {
  std::int32_t* query_counts;
  std::int32_t* key_counts;
  // Per packed query head; words are pairs of elements for 16-bit types.
  std::uint32_t* q_t;     ///< Q^T, fragment by fragment [row_words][width]
  std::uint32_t* dout_t;  ///< dO^T
  std::uint32_t* q;       ///< Q [width in words][D]
  std::uint32_t* dout;    ///< dO
  float* lse;             ///< [slots]
  float* delta;           ///< [slots]
  float* dq_t;            ///< dQ^T [D][width]
  // Per packed key head.
  float* dk;             ///< [slots][D]
  float* dv;             ///< [slots][D]
  std::int32_t* rounds;  ///< [chunks]: rounds done
  std::int64_t chunks;
  std::int64_t packed_heads;  ///< key heads at a time
  std::byte* scratch;
  std::size_t scratch_bytes;
};

Scratch lay_out_scratch(core::Arena& arena, const Context& context) {
  const std::int64_t d = context.head_dim();
  const std::int64_t depth = std::max<std::int64_t>(d, context.row_words());
  Scratch scratch;
  scratch.tokens = arena.take<std::int64_t>(context.slots_of_tile());
  scratch.k = arena.take<std::uint32_t>(kKeyRows * depth);
  scratch.v = arena.take<std::uint32_t>(kKeyRows * depth);
  scratch.k_t = arena.take<std::uint32_t>(kKeyRows * depth);
  scratch.pair.s = arena.take<float>(kKeyRows * kFragment);
  scratch.pair.dp = arena.take<float>(kKeyRows * kFragment);
  const std::int64_t halves = context.dot_bf16() ? kKeyRows * kFragment : 0;
  scratch.pair.p = arena.take<std::uint16_t>(halves);
  scratch.pair.ds = arena.take<std::uint16_t>(halves);
  scratch.pair.ds_pairs = arena.take<std::uint32_t>(halves / 2);
  scratch.expanded = arena.take<float>((context.expands() ? 4 : 1) * kFragment * d);
  return scratch;
}

Space lay_out(core::Arena& arena, const Context& context, const BackwardArgs& args) {
  Space space;
  const std::int64_t batch = context.batch();
  space.query_counts =
      arena.take<std::int32_t>(context.query.count_words(batch, args.lengths.query));
  space.key_counts = arena.take<std::int32_t>(context.key.count_words(batch, args.lengths.key));
  const std::int64_t d = context.head_dim();
  const std::int64_t tiles = std::min(context.query.tiles(), context.key.tiles());
  space.chunks = std::clamp<std::int64_t>(tiles / kTilesOfChunk, 1, kMostChunks);

  const std::int64_t words = context.query.slots() * context.row_words();
  const std::int64_t plain_words =
      context.query.slots() * d * static_cast<std::int64_t>(context.element()) / 4;
  const std::int64_t gradient = context.query.slots() * d;
  const std::int64_t key_gradient = context.key.slots() * d;
  const double bytes =
      4.0 * static_cast<double>(context.group() * (2 * words + 2 * plain_words + gradient) +
                                2 * key_gradient);
  const std::int64_t fitting = bytes > 0 ? static_cast<std::int64_t>(kPackBytes / bytes) : 1;
  const std::int64_t wanted = (kUnitsOfRound + space.chunks - 1) / space.chunks;
  space.packed_heads = std::clamp<std::int64_t>(
      std::min(fitting, wanted), 1, std::max<std::int64_t>(1, batch * context.key_heads()));

  const std::int64_t heads = space.packed_heads * context.group();
  space.q_t = arena.take<std::uint32_t>(heads * words);
  space.dout_t = arena.take<std::uint32_t>(heads * words);
  space.q = arena.take<std::uint32_t>(heads * plain_words);
  space.dout = arena.take<std::uint32_t>(heads * plain_words);
  space.lse = arena.take<float>(heads * context.query.slots());
  space.delta = arena.take<float>(heads * context.query.slots());
  space.dq_t = arena.take<float>(heads * gradient);
  space.dk = arena.take<float>(space.packed_heads * key_gradient);
  space.dv = arena.take<float>(space.packed_heads * key_gradient);
  space.rounds = arena.take<std::int32_t>(space.packed_heads * space.chunks);
  core::Arena one(nullptr);
  lay_out_scratch(one, context);
  space.scratch_bytes = one.used();
  space.scratch = arena.take<std::byte>(static_cast<std::int64_t>(space.scratch_bytes) *
                                        context.setting->parallel.concurrency());
  return space;
}

class AttendBackward {
 public:
  AttendBackward(const Context& context, const BackwardArgs& args, const float* delta,
                 const CoarseGradients& coarse, Workspace workspace)
      : context_(context),
        kernels_(*context.kernels),
        args_(args),
        delta_(delta),
        coarse_(coarse),
        d_(context.head_dim()),
        words_(context.row_words()),
        depth_(context.dot_bf16() ? words_ : d_),
        scale_(static_cast<float>(context.scale(args.scale))),
        pair_(kernels_, context.dot_bf16(), d_, depth_,
              static_cast<float>(context.scale(args.scale))) {
    core::Arena arena(workspace.data);
    space_ = lay_out(arena, context, args);
    query_counts_ = context.query.counts(context.batch(), args.lengths.query, space_.query_counts);
    key_counts_ = context.key.counts(context.batch(), args.lengths.key, space_.key_counts);
  }

  void run() {
    const ParallelFor& parallel = context_.setting->parallel;
    const std::int64_t pairs = context_.batch() * context_.key_heads();
    const std::int64_t query_tiles = context_.query.tiles();
    const std::int64_t key_tiles = context_.key.tiles();
    const std::int64_t group = context_.group();
    for (std::int64_t first = 0; first < pairs; first += space_.packed_heads) {
      const std::int64_t here = std::min(space_.packed_heads, pairs - first);
      std::fill_n(space_.rounds, here * space_.chunks, 0);
      const std::int64_t queries = here * group * query_tiles;
      const std::int64_t keys = here * key_tiles;
      for_each_unit(parallel, kernels_, queries + keys, [&](std::int64_t unit, int worker) {
        if (unit < queries) {
          pack_queries(place(first, unit / query_tiles), unit % query_tiles, scratch(worker));
        } else {
          clear_keys((unit - queries) / key_tiles, (unit - queries) % key_tiles);
        }
      });
      const std::int64_t round = here * space_.chunks;
      for_each_unit(parallel, kernels_, round * space_.chunks, [&](std::int64_t unit, int worker) {
        chunk(first, unit % round / space_.chunks, unit % space_.chunks, unit / round,
              scratch(worker));
      });
      for_each_unit(parallel, kernels_, queries + keys, [&](std::int64_t unit, int worker) {
        if (unit < queries) {
          finish_queries(place(first, unit / query_tiles), unit % query_tiles, scratch(worker));
        } else {
          finish_keys(first, (unit - queries) / key_tiles, (unit - queries) % key_tiles,
                      scratch(worker));
        }
      });
    }
  }

 private:
  /// A query head: its index among the packed ones, and what it is.
  struct Place {
    std::int64_t index;
    std::int64_t batch;
    std::int64_t head;
  };
  Place place(std::int64_t first, std::int64_t index) const {
    const std::int64_t pair = first + index / context_.group();
    return {index, pair / context_.key_heads(),
            pair % context_.key_heads() * context_.group() + index % context_.group()};
  }

  Scratch scratch(int worker) const {
    core::Arena arena(space_.scratch + static_cast<std::size_t>(worker) * space_.scratch_bytes);
    return lay_out_scratch(arena, context_);
  }

  int width_of(std::int64_t count, const Side& side) const {
    return static_cast<int>(round_up(count, side.multiple()));
  }
  /// Offset of a slot in packs of row_words, of D elements, of D floats.
  std::int64_t word_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.query.slots() + slot) * words_;
  }
  std::int64_t element_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.query.slots() + slot) * d_ *
           static_cast<std::int64_t>(context_.element()) / 4;
  }
  std::int64_t query_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.query.slots() + slot) * d_;
  }
  std::int64_t key_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.key.slots() + slot) * d_;
  }

  void pack_queries(const Place& at, std::int64_t tile, const Scratch& scratch) const {
    const std::int64_t count = query_counts_.row(at.batch)[tile];
    context_.query.gather(tile, count, scratch.tokens);
    const HeadRows<const void*> q(args_.q, at.batch, at.head);
    const HeadRows<const void*> dout(args_.dout, at.batch, at.head);
    const float* delta =
        delta_ + (at.batch * context_.heads() + at.head) * context_.query.layout().tokens();
    for (std::int64_t first = 0; first < count; first += kFragment) {
      const int here = static_cast<int>(std::min<std::int64_t>(kFragment, count - first));
      const int width = width_of(here, context_.query);
      const std::int64_t slot = context_.query.slot(tile) + first;
      const std::int64_t* tokens = scratch.tokens + first;
      float* lse = space_.lse + at.index * context_.query.slots() + slot;
      float* deltas = space_.delta + at.index * context_.query.slots() + slot;
      for (int i = 0; i < width; ++i) {
        lse[i] = i < here ? lse_of(at, tokens[i]) : kInfinity;
        deltas[i] = lse[i] == kInfinity ? 0.0f : delta[tokens[i]];
      }
      pack(q, tokens, here, width, lse, space_.q_t + word_offset(at.index, slot),
           space_.q + element_offset(at.index, slot));
      pack(dout, tokens, here, width, lse, space_.dout_t + word_offset(at.index, slot),
           space_.dout + element_offset(at.index, slot));
      std::memset(space_.dq_t + query_offset(at.index, slot), 0,
                  static_cast<std::size_t>(width * d_) * sizeof(float));
    }
  }

  /// +inf makes P and all gradients 0 where nothing was selected.
  float lse_of(const Place& at, std::int64_t token) const {
    const float lse =
        static_cast<const float*>(args_.lse.data)[args_.lse.offset(at.batch, at.head, token)];
    return lse == -kInfinity ? kInfinity : lse;
  }

  /// Both B operands of a fragment's rows; zeros where lse is +inf.
  void pack(const HeadRows<const void*>& source, const std::int64_t* tokens, int count, int width,
            const float* lse, std::uint32_t* transposed, std::uint32_t* straight) const {
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

  void clear_keys(std::int64_t index, std::int64_t tile) const {
    const std::int64_t begin = key_offset(index, context_.key.slot(tile));
    const std::int64_t end = key_offset(index, context_.key.slot(tile + 1));
    std::fill(space_.dk + begin, space_.dk + end, 0.0f);
    std::fill(space_.dv + begin, space_.dv + end, 0.0f);
  }

  void chunk(std::int64_t first, std::int64_t index, std::int64_t c, std::int64_t round,
             const Scratch& scratch) const {
    const std::int64_t chunks = space_.chunks;
    std::int32_t* done = space_.rounds + index * chunks;
    wait_for(done[c], round);
    wait_for(done[(c + 1) % chunks], round);
    const std::int64_t block = (c + round) % chunks;
    const std::int64_t tiles = context_.key.tiles();
    const std::int64_t query_tiles = context_.query.tiles();
    const Range queries{block * query_tiles / chunks, (block + 1) * query_tiles / chunks};
    for (std::int64_t tile = c * tiles / chunks; tile < (c + 1) * tiles / chunks; ++tile) {
      key_tile(first, index, tile, queries, scratch);
    }
    std::atomic_ref<std::int32_t> mine(done[c]);
    mine.store(static_cast<std::int32_t>(round + 1), std::memory_order_release);
    mine.notify_all();
  }

  static void wait_for(std::int32_t& rounds, std::int64_t wanted) {
    std::atomic_ref<std::int32_t> done(rounds);
    for (;;) {
      const std::int32_t seen = done.load(std::memory_order_acquire);
      if (seen >= wanted) return;
      done.wait(seen, std::memory_order_acquire);
    }
  }

  struct Range {
    std::int64_t begin;
    std::int64_t end;
  };

  void key_tile(std::int64_t first, std::int64_t index, std::int64_t tile, const Range& queries,
                const Scratch& scratch) const {
    const std::int64_t pair = first + index;
    const std::int64_t b = pair / context_.key_heads();
    const std::int64_t g = pair % context_.key_heads();
    const std::int64_t count = key_counts_.row(b)[tile];
    for (std::int64_t begin = 0; begin < count; begin += kKeyRows) {
      const std::int64_t rows = std::min<std::int64_t>(kKeyRows, count - begin);
      KeyOperands keys{};   // loaded when the first pair needs them
      QueryOperands now{};  // a pair is multiplied when the next is known, which it fetches
      for (std::int64_t member = 0; member < context_.group(); ++member) {
        const Place at = place(first, index * context_.group() + member);
        for (std::int64_t i = queries.begin; i < queries.end; ++i) {
          if (!args_.mask.test(b, at.head, i, tile)) continue;
          const std::int64_t tokens = query_counts_.row(b)[i];
          for (std::int64_t token = 0; token < tokens; token += kFragment) {
            const int valid = static_cast<int>(std::min<std::int64_t>(kFragment, tokens - token));
            const QueryOperands next = packed(at.index, context_.query.slot(i) + token, valid);
            if (keys.k == nullptr) keys = load_keys(b, g, index, tile, begin, rows, scratch);
            if (now.q != nullptr) multiply(now, &next, keys, scratch);
            now = next;
          }
        }
      }
      if (now.q != nullptr) multiply(now, nullptr, keys, scratch);
    }
  }

  /// A fragment of queries as it was packed.
  QueryOperands packed(std::int64_t index, std::int64_t slot, int valid) const {
    QueryOperands q;
    q.q_t = space_.q_t + word_offset(index, slot);
    q.dout_t = space_.dout_t + word_offset(index, slot);
    q.q = space_.q + element_offset(index, slot);
    q.dout = space_.dout + element_offset(index, slot);
    q.lse = space_.lse + index * context_.query.slots() + slot;
    q.delta = space_.delta + index * context_.query.slots() + slot;
    q.dq_t = space_.dq_t + query_offset(index, slot);
    q.width = width_of(valid, context_.query);
    q.valid = valid;
    return q;
  }

  void multiply(QueryOperands q, const QueryOperands* next, const KeyOperands& keys,
                const Scratch& scratch) const {
    const std::ptrdiff_t wide_bytes = q.width * static_cast<std::ptrdiff_t>(d_) * 4;
    const std::ptrdiff_t element = static_cast<std::ptrdiff_t>(context_.element());
    if (!context_.expands()) {
      const std::ptrdiff_t words = q.width * static_cast<std::ptrdiff_t>(words_) * 4;
      const std::ptrdiff_t rows = q.width * d_ * element;
      Ahead last;
      if (next != nullptr)
        last = {next->q_t, next->width * static_cast<std::ptrdiff_t>(words_) * 4};
      pair_.add(q, keys,
                {{q.dout_t, words}, {q.dout, rows}, {q.q, rows}, {q.dq_t, wide_bytes}, last},
                scratch.pair);
      return;
    }
    Ahead ahead[5] = {{q.dq_t, wide_bytes}, {}, {}, {}, {}};
    if (next != nullptr) {
      const std::ptrdiff_t bytes = next->width * d_ * element;
      ahead[1] = {next->q_t, bytes};
      ahead[2] = {next->dout_t, bytes};
      ahead[3] = {next->q, bytes};
      ahead[4] = {next->dout, bytes};
    }
    float* wide = scratch.expanded;
    const auto expand = [&](const void*& operand, int pairs, int n) {
      kernels_.expand_pairs(context_.dtype(), static_cast<const std::uint32_t*>(operand), pairs, n,
                            wide);
      operand = wide;
      wide += kFragment * d_;
    };
    expand(q.q_t, words_, q.width);
    expand(q.dout_t, words_, q.width);
    expand(q.q, q.width / 2, d_);
    expand(q.dout, q.width / 2, d_);
    pair_.add(q, keys, ahead, scratch.pair);
  }

  /// Tokens begin..begin + count - 1 of a tile.
  KeyOperands load_keys(std::int64_t b, std::int64_t g, std::int64_t index, std::int64_t tile,
                        std::int64_t begin, std::int64_t count, const Scratch& scratch) const {
    const int valid = static_cast<int>(count);
    const int rows = width_of(count, context_.key);
    context_.key.gather(tile, begin + count, scratch.tokens);
    const std::int64_t* tokens = scratch.tokens + begin;
    load_rows(HeadRows<const void*>(args_.k, b, g), tokens, valid, rows, scratch.k);
    load_rows(HeadRows<const void*>(args_.v, b, g), tokens, valid, rows, scratch.v);
    const void* pointers[kMaxHeadDim > kKeyRows ? kMaxHeadDim : kKeyRows];
    for (int row = 0; row < rows; ++row) pointers[row] = scratch.k + row * depth_;
    if (context_.dot_bf16()) {
      // Pairs of keys are words: interleave two rows, then transpose words.
      std::uint32_t* pairs = reinterpret_cast<std::uint32_t*>(scratch.expanded);
      for (int first = 0; first < rows; first += kFragment) {
        const int here = std::min(kFragment, rows - first);
        kernels_.interleave_rows(pointers + first, here, d_, pairs, here / 2);
        for (int column = 0; column < d_; column += kPanel) {
          const int width = std::min(kPanel, d_ - column);
          const void* words[kFragment / 2];
          for (int i = 0; i < here / 2; ++i) words[i] = pairs + column * here / 2 + i * width;
          kernels_.transpose_words(words, here / 2, width,
                                   scratch.k_t + column * rows / 2 + first / 2, rows / 2, here / 2,
                                   width);
        }
      }
    } else {
      kernels_.transpose_words(pointers, rows, d_, scratch.k_t, rows, rows, d_);
    }
    const std::int64_t offset = key_offset(index, context_.key.slot(tile) + begin);
    return {scratch.k, scratch.v, scratch.k_t, space_.dk + offset, space_.dv + offset, rows, valid};
  }

  /// A operand: rows of words, zero past the valid ones.
  void load_rows(const HeadRows<const void*>& source, const std::int64_t* tokens, int valid,
                 int rows, std::uint32_t* out) const {
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

  void finish_queries(const Place& at, std::int64_t tile, const Scratch& scratch) const {
    const std::int64_t count = query_counts_.row(at.batch)[tile];
    const std::int64_t capacity = context_.query.capacity(tile);
    context_.query.gather(tile, capacity, scratch.tokens);
    const HeadRows<void*> dq(args_.dq, at.batch, at.head);
    const float* dqc = row_of(coarse_.dqc, at.batch, at.head, tile);
    for (std::int64_t first = 0; first < count; first += kFragment) {
      const int here = static_cast<int>(std::min<std::int64_t>(kFragment, count - first));
      const int width = width_of(here, context_.query);
      const float* dq_t = space_.dq_t + query_offset(at.index, context_.query.slot(tile) + first);
      const void* rows[kMaxHeadDim];
      for (int i = 0; i < d_; ++i) rows[i] = dq_t + i * width;
      kernels_.transpose_words(rows, d_, width, reinterpret_cast<std::uint32_t*>(scratch.expanded),
                               d_, d_, width);
      finish(scratch.expanded, scale_, dqc, count, here, scratch.tokens + first, dq);
    }
    clear(dq, scratch.tokens + count, capacity - count);
  }

  void finish_keys(std::int64_t first, std::int64_t index, std::int64_t tile,
                   const Scratch& scratch) const {
    const std::int64_t pair = first + index;
    const std::int64_t b = pair / context_.key_heads();
    const std::int64_t g = pair % context_.key_heads();
    const std::int64_t count = key_counts_.row(b)[tile];
    const std::int64_t capacity = context_.key.capacity(tile);
    context_.key.gather(tile, capacity, scratch.tokens);
    const HeadRows<void*> dk(args_.dk, b, g);
    const HeadRows<void*> dv(args_.dv, b, g);
    const std::int64_t offset = key_offset(index, context_.key.slot(tile));
    finish(space_.dk + offset, scale_, row_of(coarse_.dkc, b, g, tile), count, count,
           scratch.tokens, dk);
    finish(space_.dv + offset, 1.0f, row_of(coarse_.dvc, b, g, tile), count, count, scratch.tokens,
           dv);
    clear(dk, scratch.tokens + count, capacity - count);
    clear(dv, scratch.tokens + count, capacity - count);
  }

  static const float* row_of(const TensorRef& tensor, std::int64_t b, std::int64_t head,
                             std::int64_t tile) {
    if (!tensor) return nullptr;
    return static_cast<const float*>(tensor.data) + tensor.offset(b, head, tile);
  }

  /// Rounds `rows` accumulated rows, each with its share of its tile's coarse gradient.
  void finish(const float* acc, float factor, const float* coarse, std::int64_t count,
              std::int64_t rows, const std::int64_t* tokens, const HeadRows<void*>& out) const {
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
  void clear(const HeadRows<void*>& out, const std::int64_t* tokens, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      std::memset(out[tokens[i]], 0, static_cast<std::size_t>(d_) * context_.element());
    }
  }

  const Context& context_;
  const Kernels& kernels_;
  const BackwardArgs& args_;
  const float* delta_;
  CoarseGradients coarse_;
  int d_;
  int words_;
  int depth_;
  float scale_;
  PairGradient pair_;
  Space space_;
  Counts query_counts_;
  Counts key_counts_;
};

}  // namespace

std::size_t attend_backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  lay_out(arena, context, args);
  return arena.used();
}

void attend_backward(const Context& context, const BackwardArgs& args, const float* delta,
                     const CoarseGradients& coarse, Workspace workspace) {
  AttendBackward(context, args, delta, coarse, workspace).run();
}

}  // namespace vidsparse::cpu
