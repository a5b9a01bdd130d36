#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/workspace.hpp"
#include "cpu/key_walk.hpp"
#include "cpu/stages.hpp"
#include "cpu/workers.hpp"

// Forward attention. K^T and V of a few (batch, key head) pairs are packed at a time and shared by
// all their query tiles; a unit of work is a query tile of a head. It walks its selected key
// fragments in groups of up to 256 columns: S = Q K^T, one online softmax step, O += P V. 16-bit
// operands without a bf16 product are expanded a group at a time, into memory that stays in the
// second-level cache.

namespace vidsparse::cpu {
namespace {

constexpr int kColumns = 256;          ///< of a group of key fragments
constexpr int kPitch = kColumns + 16;  ///< no power of two: rows fall into different cache sets
constexpr int kQueryRows = 256;        ///< query tokens that share a walk
constexpr double kPackShare = 0.06;    ///< of q + k + v: what packs may take beyond one head
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634;

struct Scratch {  // per worker
  std::int64_t* tokens;
  std::uint32_t* q;  ///< A operand [rows][row_words]
  float* s;          ///< [rows][kPitch]
  std::uint16_t* p;  ///< [rows][kPitch], bf16 products only
  float* out;        ///< [rows][D]
  float* max;        ///< [rows]
  float* sum;        ///< [rows]
  float* expanded;   ///< fp32 K^T or V of a group
};

struct Space {
  std::int32_t* query_counts;
  std::int32_t* key_counts;
  std::uint32_t* k;  ///< [heads of a batch of packs][slots][row_words] words, fragment by fragment
  std::uint32_t* v;  ///< [...][slots * D] elements
  std::int64_t packed_heads;
  std::int64_t k_words;  ///< of a head
  std::int64_t v_words;
  std::byte* scratch;
  std::size_t scratch_bytes;  ///< of a worker
};

Scratch lay_out_scratch(core::Arena& arena, const Context& context) {
  const std::int64_t tile = context.slots_of_tile();
  const std::int64_t rows = std::min<std::int64_t>(tile, kQueryRows);
  const int d = context.head_dim();
  Scratch scratch;
  scratch.tokens = arena.take<std::int64_t>(tile);
  scratch.q = arena.take<std::uint32_t>(rows * std::max(d, context.row_words()));
  scratch.s = arena.take<float>(rows * kPitch);
  scratch.p = arena.take<std::uint16_t>(context.dot_bf16() ? rows * kPitch : 0);
  scratch.out = arena.take<float>(rows * d);
  scratch.max = arena.take<float>(rows);
  scratch.sum = arena.take<float>(rows);
  scratch.expanded = arena.take<float>(context.expands() ? kColumns * d : 0);
  return scratch;
}

Space lay_out(core::Arena& arena, const Context& context, const AttendArgs& args) {
  Space space;
  const std::int64_t batch = context.batch();
  space.query_counts =
      arena.take<std::int32_t>(context.query.count_words(batch, args.lengths.query));
  space.key_counts = arena.take<std::int32_t>(context.key.count_words(batch, args.lengths.key));
  const std::int64_t slots = context.key.slots();
  const std::int64_t d = context.head_dim();
  space.k_words = slots * context.row_words();
  space.v_words = slots * d * static_cast<std::int64_t>(context.element()) / 4;
  // At least one head; more where they stay small beside the tensors.
  const double rows = static_cast<double>(context.heads() * context.query.layout().tokens() +
                                          2 * context.key_heads() * context.key.layout().tokens());
  const double bytes =
      rows * static_cast<double>(batch * d) * static_cast<double>(context.element());
  const double head = 4.0 * static_cast<double>(space.k_words + space.v_words);
  const std::int64_t fitting =
      head > 0 ? static_cast<std::int64_t>(kPackShare * bytes / head) : batch;
  space.packed_heads =
      std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(1, batch * context.key_heads()));
  space.k = arena.take<std::uint32_t>(space.packed_heads * space.k_words);
  space.v = arena.take<std::uint32_t>(space.packed_heads * space.v_words);
  core::Arena one(nullptr);
  lay_out_scratch(one, context);
  space.scratch_bytes = one.used();
  space.scratch = arena.take<std::byte>(static_cast<std::int64_t>(space.scratch_bytes) *
                                        context.setting->parallel.concurrency());
  return space;
}

/// The stage with everything it looks up again and again.
class Attend {
 public:
  Attend(const Context& context, const AttendArgs& args, Workspace workspace)
      : context_(context), kernels_(*context.kernels), args_(args) {
    core::Arena arena(workspace.data);
    space_ = lay_out(arena, context, args);
    query_counts_ = context.query.counts(context.batch(), args.lengths.query, space_.query_counts);
    key_counts_ = context.key.counts(context.batch(), args.lengths.key, space_.key_counts);
    d_ = context.head_dim();
    words_ = context.row_words();
    const double scale = context.scale(args.scale);
    negative_ = scale < 0;
    // A zero scale becomes a tiny one, so that -inf, the mark of no key, stays what it is.
    scale_log2_ = std::max(static_cast<float>(std::abs(scale) * kLog2E), 1e-30f);
    natural_ = std::abs(scale) / scale_log2_;
  }

  void run() {
    const std::int64_t pairs = context_.batch() * context_.key_heads();
    const ParallelFor& parallel = context_.setting->parallel;
    const std::int64_t query_tiles = context_.query.tiles();
    for (std::int64_t first = 0; first < pairs; first += space_.packed_heads) {
      const std::int64_t here = std::min(space_.packed_heads, pairs - first);
      const std::int64_t tiles = context_.key.tiles();
      // Workers take units in turns: how far away the next one of a worker is, most likely.
      const std::int64_t ahead = parallel.concurrency();
      const std::int64_t packs = here * tiles;
      for_each_unit(parallel, kernels_, packs, [&](std::int64_t unit, int worker) {
        const std::int64_t next = unit + ahead;
        if (next < packs) prefetch_keys(first + next / tiles, next % tiles);
        pack(first + unit / tiles, unit / tiles, unit % tiles, scratch(worker));
      });
      const std::int64_t units = here * context_.group() * query_tiles;
      for_each_unit(parallel, kernels_, units, [&](std::int64_t unit, int worker) {
        const std::int64_t next = std::min(unit + ahead, units - 1);
        query_tile(place(first, unit), place(first, next), scratch(worker));
      });
    }
  }

 private:
  struct QueryTile {
    std::int64_t index;  ///< of its key head among the packed ones
    std::int64_t batch;
    std::int64_t head;
    std::int64_t tile;
  };

  /// The query tile of a unit of work; `first` is the first packed pair of (batch, key head).
  QueryTile place(std::int64_t first, std::int64_t unit) const {
    const std::int64_t tiles = context_.query.tiles();
    const std::int64_t index = unit / tiles / context_.group();
    const std::int64_t pair = first + index;
    return {index, pair / context_.key_heads(),
            pair % context_.key_heads() * context_.group() + unit / tiles % context_.group(),
            unit % tiles};
  }

  Scratch scratch(int worker) const {
    core::Arena arena(space_.scratch + static_cast<std::size_t>(worker) * space_.scratch_bytes);
    return lay_out_scratch(arena, context_);
  }

  const std::uint32_t* packed_k(std::int64_t index, std::int64_t slot) const {
    return space_.k + index * space_.k_words + slot * words_;
  }
  const std::uint32_t* packed_v(std::int64_t index, std::int64_t slot) const {
    return space_.v + index * space_.v_words +
           slot * d_ * static_cast<std::int64_t>(context_.element()) / 4;
  }

  void prefetch_keys(std::int64_t pair, std::int64_t tile) const {
    const std::int64_t b = pair / context_.key_heads();
    const std::int64_t g = pair % context_.key_heads();
    context_.prefetch(context_.key, tile, key_counts_.row(b)[tile], b, g, {args_.k, args_.v});
  }

  void pack(std::int64_t pair, std::int64_t index, std::int64_t tile, const Scratch& scratch) {
    const std::int64_t b = pair / context_.key_heads();
    const std::int64_t g = pair % context_.key_heads();
    const std::int64_t count = key_counts_.row(b)[tile];
    context_.key.gather(tile, count, scratch.tokens);
    const HeadRows<const void*> k(args_.k, b, g);
    const HeadRows<const void*> v(args_.v, b, g);
    const bool wide = context_.dtype() == DType::f32;
    for (std::int64_t first = 0; first < count; first += kFragment) {
      const int here = static_cast<int>(std::min<std::int64_t>(kFragment, count - first));
      const int width = static_cast<int>(round_up(here, context_.key.multiple()));
      const std::int64_t slot = context_.key.slot(tile) + first;
      auto* k_out = const_cast<std::uint32_t*>(packed_k(index, slot));
      auto* v_out = const_cast<std::uint32_t*>(packed_v(index, slot));
      const void* rows[kFragment];
      k.collect(scratch.tokens + first, here, rows);
      kernels_.transpose_words(rows, here, wide ? d_ : d_ / 2, k_out, width, width, words_);
      v.collect(scratch.tokens + first, here, rows);
      if (wide) {
        pack_rows_f32(rows, here, d_, reinterpret_cast<float*>(v_out), width);
      } else {
        kernels_.interleave_rows(rows, here, d_, v_out, width / 2);
      }
    }
  }

  void query_tile(const QueryTile& at, const QueryTile& next, const Scratch& scratch) const {
    const std::int64_t count = query_counts_.row(at.batch)[at.tile];
    const std::int64_t capacity = context_.query.capacity(at.tile);
    context_.query.gather(at.tile, capacity, scratch.tokens);
    for (std::int64_t first = 0; first < count; first += kQueryRows) {
      const int m = static_cast<int>(std::min<std::int64_t>(kQueryRows, count - first));
      const std::int64_t* tokens = scratch.tokens + first;
      load_queries(at, tokens, m, scratch);
      if (!walk(at, next, m, scratch)) std::fill_n(scratch.sum, m, 0.0f);
      finish(at, tokens, m, scratch);
    }
    clear(at, scratch.tokens + count, capacity - count);
  }

  /// Rows of Q as an A operand.
  void load_queries(const QueryTile& at, const std::int64_t* tokens, int m,
                    const Scratch& scratch) const {
    const HeadRows<const void*> q(args_.q, at.batch, at.head);
    for (int row = 0; row < m; ++row) {
      std::uint32_t* out = scratch.q + static_cast<std::ptrdiff_t>(row) * depth();
      if (context_.dot_bf16()) {
        std::memcpy(out, q[tokens[row]], static_cast<std::size_t>(d_) * 2);
        std::fill(out + d_ / 2, out + words_, 0U);
        if (negative_) {
          for (int w = 0; w < d_ / 2; ++w) out[w] ^= 0x80008000U;
        }
        continue;
      }
      auto* wide = reinterpret_cast<float*>(out);
      kernels_.widen(context_.dtype(), q[tokens[row]], wide, d_);
      if (negative_) {
        for (int i = 0; i < d_; ++i) wide[i] = -wide[i];
      }
    }
  }

  /// Words of a row of the A operand Q and of a column of the B operand K^T.
  int depth() const { return context_.dot_bf16() ? words_ : d_; }

  /// Attends all selected keys; false if there were none. Towards the end it fetches what comes
  /// after it: rows of the output, the gate and the next query tile.
  bool walk(const QueryTile& at, const QueryTile& after, int m, const Scratch& scratch) const {
    KeyWalk keys(args_.mask.row(at.batch, at.head, at.tile), args_.mask.shape.row_words(),
                 context_.key, key_counts_.row(at.batch));
    Group groups[2];  // the one under way and the next, whose K is fetched meanwhile
    groups[0].count = keys.next_group(groups[0].fragments, kColumns);
    if (groups[0].count == 0) return false;
    for (int turn = 0; groups[turn % 2].count > 0; ++turn) {
      Group& next = groups[(turn + 1) % 2];
      next.count = keys.next_group(next.fragments, kColumns);
      if (next.count == 0) {
        prefetch_queries(at, args_.out);
        if (args_.gate.is_tensor()) prefetch_queries(at, args_.gate.tensor());
        prefetch_queries(after, args_.q);
      }
      group(at.index, groups[turn % 2], next, m, turn == 0, scratch);
    }
    return true;
  }

  void prefetch_queries(const QueryTile& at, const TensorView& tensor) const {
    context_.prefetch(context_.query, at.tile, query_counts_.row(at.batch)[at.tile], at.batch,
                      at.head, {tensor});
  }

  struct Group {
    KeyFragment fragments[kColumns / 16];
    int count;
  };

  void group(std::int64_t index, const Group& here, const Group& next, int m, bool first,
             const Scratch& scratch) const {
    const auto product = context_.dot_bf16() ? kernels_.product_bf16 : kernels_.product_f32;
    int columns = 0;
    for (int i = 0; i < here.count; ++i) {
      const KeyFragment& f = here.fragments[i];
      Term term{scratch.q, packed_k(index, f.slot), depth(), depth()};
      if (context_.expands()) expand(term.b, words_, f.width, scratch.expanded);
      term.ahead = packed_v(index, f.slot);
      term.ahead_bytes = f.width * d_ * static_cast<std::ptrdiff_t>(context_.element());
      float* s = scratch.s + columns;
      product({&term, 1, s, kPitch, m, f.width, false});
      for (int row = 0; row < m && f.count < f.width; ++row) {
        std::fill(s + row * kPitch + f.count, s + row * kPitch + f.width, -kInfinity);
      }
      columns += f.width;
    }
    const SoftmaxBlock block{scratch.s, kPitch,      scratch.p,   kPitch,      m,
                             columns,   scale_log2_, scratch.max, scratch.sum, scratch.out,
                             d_,        d_,          first};
    (context_.dot_bf16() ? kernels_.softmax_bf16 : kernels_.softmax_f32)(block);

    Term terms[kColumns / 16];
    columns = 0;
    for (int i = 0; i < here.count; ++i) {
      const KeyFragment& f = here.fragments[i];
      Term& term = terms[i];
      if (context_.dot_bf16()) {
        term = {scratch.p + columns, packed_v(index, f.slot), kPitch / 2, f.width / 2};
      } else {
        term = {scratch.s + columns, packed_v(index, f.slot), kPitch, f.width};
      }
      if (context_.expands()) {
        expand(term.b, f.width / 2, d_,
               scratch.expanded + static_cast<std::ptrdiff_t>(columns) * d_);
      }
      if (i < next.count) {
        term.ahead = packed_k(index, next.fragments[i].slot);
        term.ahead_bytes = next.fragments[i].width * static_cast<std::ptrdiff_t>(words_) * 4;
      }
      columns += f.width;
    }
    product({terms, here.count, scratch.out, d_, m, d_, !first});
  }

  /// Replaces a packed 16-bit operand by its fp32 copy in `wide`.
  void expand(const void*& operand, int pairs, int n, float* wide) const {
    kernels_.expand_pairs(context_.dtype(), static_cast<const std::uint32_t*>(operand), pairs, n,
                          wide);
    operand = wide;
  }

  void finish(const QueryTile& at, const std::int64_t* tokens, int m,
              const Scratch& scratch) const {
    const Gate& gate = args_.gate;
    const HeadRows<void*> out(args_.out, at.batch, at.head);
    FinishRow row{};
    row.dtype = context_.dtype();
    row.d = d_;
    HeadRows<const void*> gates;
    if (!gate.is_none()) {
      row.coarse =
          static_cast<const float*>(args_.oc.data) + args_.oc.offset(at.batch, at.head, at.tile);
      row.gate_scalar = gate.is_scalar() ? gate.value() : 0.0f;
      if (gate.is_tensor()) gates = HeadRows<const void*>(gate.tensor(), at.batch, at.head);
    }
    for (int i = 0; i < m; ++i) {
      const float sum = scratch.sum[i];
      float* acc = scratch.out + static_cast<std::ptrdiff_t>(i) * d_;
      // A row without weight is 0 even over infinite values.
      if (sum == 0.0f) std::fill_n(acc, d_, 0.0f);
      row.acc = acc;
      row.factor = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (gate.is_tensor()) row.gate = gates[tokens[i]];
      row.out = out[tokens[i]];
      kernels_.finish_row(row);
      if (args_.lse) {
        write_lse(at, tokens[i],
                  sum == 0.0f
                      ? -kInfinity
                      : static_cast<float>(scratch.max[i] * natural_ + std::log(double{sum})));
      }
    }
  }

  void write_lse(const QueryTile& at, std::int64_t token, float value) const {
    static_cast<float*>(args_.lse.data)[args_.lse.offset(at.batch, at.head, token)] = value;
  }

  /// Pad slots of the outputs.
  void clear(const QueryTile& at, const std::int64_t* tokens, std::int64_t count) const {
    const HeadRows<void*> out(args_.out, at.batch, at.head);
    for (std::int64_t i = 0; i < count; ++i) {
      std::memset(out[tokens[i]], 0, static_cast<std::size_t>(d_) * context_.element());
      if (args_.lse) write_lse(at, tokens[i], -kInfinity);
    }
  }

  const Context& context_;
  const Kernels& kernels_;
  const AttendArgs& args_;
  Space space_;
  Counts query_counts_;
  Counts key_counts_;
  int d_;
  int words_;
  bool negative_;
  float scale_log2_;
  double natural_;  ///< from scaled maxima to natural units
};

}  // namespace

std::size_t attend_bytes(const Context& context, const AttendArgs& args) {
  core::Arena arena(nullptr);
  lay_out(arena, context, args);
  return arena.used();
}

void attend(const Context& context, const AttendArgs& args, Workspace workspace) {
  Attend(context, args, workspace).run();
}

}  // namespace vidsparse::cpu
