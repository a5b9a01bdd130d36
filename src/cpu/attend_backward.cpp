#include <algorithm>
#include <atomic>
#include <initializer_list>

#include "core/workspace.hpp"
#include "cpu/backward.hpp"
#include "cpu/backward_packs.hpp"
#include "cpu/workers.hpp"

// Backward of the fine branch, deterministic without atomics on data. Key tiles and query tiles of
// a head are cut in C chunks each. A unit (round r, chunk c) walks the key tiles of chunk c and,
// for each, the query tiles of chunk (c + r) % C that selected it. Within a round no two units of a
// head touch the same dK, dV or dQ, and every gradient receives its summands in the order of
// rounds, whoever computes them. A unit waits for the two of the round before that touched its
// data; workers take units in order, so these are under way or done and nothing can deadlock.

namespace vidsparse::cpu {
namespace {

/// Pairs of one unit on their way: multiplied in batches that share a block of keys, once it is
/// known what comes next, which is fetched meanwhile.
class PairWindow {
 public:
  PairWindow(const Context& context, const BackwardPacks& packs, const PairGradient& gradient,
             std::int64_t pair, std::int64_t index, const BackwardScratch& scratch)
      : context_(context),
        packs_(packs),
        gradient_(gradient),
        pair_(pair),
        index_(index),
        scratch_(scratch) {}

  /// A block of keys, tokens begin..begin + count - 1 of a tile.
  struct Block {
    std::int64_t tile = -1;
    std::int64_t begin = 0;
    std::int64_t count = 0;
    bool operator==(const Block&) const = default;
  };

  void push(const QueryOperands& queries, const Block& block) {
    items_[count_++] = {queries, block};
    if (count_ == 2 * kBatch) step();
  }
  void flush() {
    while (count_ > 0) step();
  }

 private:
  struct Item {
    QueryOperands queries;
    Block block;
  };

  void step() {
    const Block block = items_[0].block;
    int batch = 1;
    while (batch < std::min(count_, kBatch) && items_[batch].block == block) ++batch;
    if (!(loaded_ == block)) {
      keys_ = packs_.load_keys(pair_, index_, block.tile, block.begin, block.count, scratch_);
      loaded_ = block;
    }
    multiply(batch);
    std::copy(items_ + batch, items_ + count_, items_);
    count_ -= batch;
  }

  std::ptrdiff_t bytes(const QueryOperands& q, std::size_t element) const {
    return q.width * static_cast<std::ptrdiff_t>(context_.head_dim()) *
           static_cast<std::ptrdiff_t>(element);
  }

  void multiply(int batch) {
    const std::size_t element = context_.element();
    QueryOperands q[kBatch];
    for (int i = 0; i < batch; ++i) q[i] = items_[i].queries;
    Ahead order[5 * kBatch + 4 * kBatch];
    int count = 0;
    if (context_.expands()) {
      for (int i = 0; i < batch; ++i) order[count++] = {q[i].dq_t, bytes(q[i], sizeof(float))};
      for (int i = batch; i < count_ && i < batch + kBatch; ++i) {
        const QueryOperands& next = items_[i].queries;
        for (const void* pack : {next.q_t, next.dout_t, next.q, next.dout}) {
          order[count++] = {pack, bytes(next, element)};
        }
      }
      float* wide = scratch_.expanded;
      for (int i = 0; i < batch; ++i) expand(q[i], wide);
    } else {
      // In the order of use, so that each product fetches what the next one reads.
      for (int i = 0; i < batch; ++i) {
        order[count++] = {q[i].q_t, bytes(q[i], element)};
        order[count++] = {q[i].dout_t, bytes(q[i], element)};
      }
      for (int i = 0; i < batch; ++i) order[count++] = {q[i].dout, bytes(q[i], element)};
      for (int i = 0; i < batch; ++i) order[count++] = {q[i].q, bytes(q[i], element)};
      for (int i = 0; i < batch; ++i) order[count++] = {q[i].dq_t, bytes(q[i], sizeof(float))};
      if (count_ > batch) {
        order[count++] = {items_[batch].queries.q_t, bytes(items_[batch].queries, element)};
      }
      std::copy(order + 1, order + count, order);
      --count;
    }
    Ahead ahead[5 * kBatch];
    std::copy_n(order, std::min(count, 5 * batch), ahead);
    gradient_.add(q, batch, keys_, ahead, scratch_.pairs);
  }

  /// Replaces the 16-bit packs by fp32 copies.
  void expand(QueryOperands& q, float*& wide) const {
    const int d = context_.head_dim();
    const auto one = [&](const void*& operand, int pairs, int n) {
      context_.kernels->expand_pairs(context_.dtype(), static_cast<const std::uint32_t*>(operand),
                                     pairs, n, wide);
      operand = wide;
      wide += kFragment * d;
    };
    one(q.q_t, d / 2, q.width);
    one(q.dout_t, d / 2, q.width);
    one(q.q, q.width / 2, d);
    one(q.dout, q.width / 2, d);
  }

  const Context& context_;
  const BackwardPacks& packs_;
  const PairGradient& gradient_;
  std::int64_t pair_;
  std::int64_t index_;
  const BackwardScratch& scratch_;
  Item items_[2 * kBatch];
  int count_ = 0;
  KeyOperands keys_{};
  Block loaded_;
};

class AttendBackward {
 public:
  AttendBackward(const Context& context, const BackwardArgs& args, const BackwardPacks& packs)
      : context_(context),
        args_(args),
        packs_(packs),
        gradient_(*context.kernels, context.dot_bf16(), context.head_dim(),
                  context.dot_bf16() ? context.row_words() : context.head_dim(),
                  static_cast<float>(context.scale(args.scale))) {}

  void run() {
    const ParallelFor& parallel = context_.setting->parallel;
    const Kernels& kernels = *context_.kernels;
    const std::int64_t pairs = context_.batch() * context_.key_heads();
    const std::int64_t query_tiles = context_.query.tiles();
    const std::int64_t key_tiles = context_.key.tiles();
    const std::int64_t chunks = packs_.chunks();
    // Workers take units in turns: how far away the next one of a worker is, most likely.
    const std::int64_t ahead = parallel.concurrency();
    for (std::int64_t first = 0; first < pairs; first += packs_.heads()) {
      const std::int64_t here = std::min(packs_.heads(), pairs - first);
      std::fill_n(packs_.rounds(0), here * chunks, 0);
      const std::int64_t queries = here * context_.group() * query_tiles;
      const std::int64_t units = queries + here * key_tiles;
      for_each_unit(parallel, kernels, units, [&](std::int64_t unit, int worker) {
        const std::int64_t next = unit + ahead;
        if (next < queries) {
          prefetch_queries(packs_.query_head(first, next / query_tiles), next % query_tiles,
                           {args_.q, args_.dout});
        }
        if (unit < queries) {
          packs_.pack_queries(packs_.query_head(first, unit / query_tiles), unit % query_tiles,
                              packs_.scratch(worker));
        } else {
          packs_.renew_keys((unit - queries) / key_tiles, (unit - queries) % key_tiles);
        }
      });
      const std::int64_t round = here * chunks;
      for_each_unit(parallel, kernels, round * chunks, [&](std::int64_t unit, int worker) {
        chunk(first, unit % round / chunks, unit % chunks, unit / round, packs_.scratch(worker));
      });
      for_each_unit(parallel, kernels, units, [&](std::int64_t unit, int worker) {
        const std::int64_t next = unit + ahead;
        if (next < queries) {
          prefetch_queries(packs_.query_head(first, next / query_tiles), next % query_tiles,
                           {args_.dq});
        } else if (next < units) {
          prefetch_keys(first + (next - queries) / key_tiles, (next - queries) % key_tiles,
                        {args_.dk, args_.dv});
        }
        if (unit < queries) {
          packs_.finish_queries(packs_.query_head(first, unit / query_tiles), unit % query_tiles,
                                packs_.scratch(worker));
        } else {
          const std::int64_t index = (unit - queries) / key_tiles;
          packs_.finish_keys(first + index, index, (unit - queries) % key_tiles,
                             packs_.scratch(worker));
        }
      });
    }
  }

 private:
  void prefetch_queries(const PackedHead& at, std::int64_t tile,
                        std::initializer_list<TensorView> tensors) const {
    context_.prefetch(context_.query, tile, packs_.query_count(at.batch, tile), at.batch, at.head,
                      tensors);
  }
  void prefetch_keys(std::int64_t pair, std::int64_t tile,
                     std::initializer_list<TensorView> tensors) const {
    const std::int64_t b = pair / context_.key_heads();
    context_.prefetch(context_.key, tile, packs_.key_count(b, tile), b, pair % context_.key_heads(),
                      tensors);
  }

  /// Chunk c of packed key head `index` with the query tiles of its round.
  void chunk(std::int64_t first, std::int64_t index, std::int64_t c, std::int64_t round,
             const BackwardScratch& scratch) const {
    const std::int64_t chunks = packs_.chunks();
    std::int32_t* done = packs_.rounds(index);
    wait_for(done[c], round);
    wait_for(done[(c + 1) % chunks], round);
    const std::int64_t block = (c + round) % chunks;
    const std::int64_t query_tiles = context_.query.tiles();
    const std::int64_t begin = block * query_tiles / chunks;
    const std::int64_t end = (block + 1) * query_tiles / chunks;
    const std::int64_t tiles = context_.key.tiles();
    const std::int64_t b = (first + index) / context_.key_heads();
    PairWindow window(context_, packs_, gradient_, first + index, index, scratch);
    const std::int64_t last = (c + 1) * tiles / chunks - 1;
    for (std::int64_t tile = c * tiles / chunks; tile <= last; ++tile) {
      if (tile < last) prefetch_keys(first + index, tile + 1, {args_.k, args_.v});
      const std::int64_t count = packs_.key_count(b, tile);
      for (std::int64_t token = 0; token < count; token += kKeyRows) {
        const PairWindow::Block keys{tile, token, std::min<std::int64_t>(kKeyRows, count - token)};
        for (std::int64_t member = 0; member < context_.group(); ++member) {
          const PackedHead at = packs_.query_head(first, index * context_.group() + member);
          for (std::int64_t i = begin; i < end; ++i) {
            if (args_.mask.test(b, at.head, i, tile)) push(window, at, i, keys);
          }
        }
      }
    }
    window.flush();
    std::atomic_ref<std::int32_t> mine(done[c]);
    mine.store(static_cast<std::int32_t>(round + 1), std::memory_order_release);
    mine.notify_all();
  }

  void push(PairWindow& window, const PackedHead& at, std::int64_t tile,
            const PairWindow::Block& keys) const {
    const std::int64_t count = packs_.query_count(at.batch, tile);
    for (std::int64_t token = 0; token < count; token += kFragment) {
      const int valid = static_cast<int>(std::min<std::int64_t>(kFragment, count - token));
      window.push(packs_.queries(at.index, tile, token, valid), keys);
    }
  }

  static void wait_for(std::int32_t& rounds, std::int64_t wanted) {
    std::atomic_ref<std::int32_t> done(rounds);
    for (;;) {
      const std::int32_t seen = done.load(std::memory_order_acquire);
      if (seen >= wanted) return;
      done.wait(seen, std::memory_order_acquire);
    }
  }

  const Context& context_;
  const BackwardArgs& args_;
  const BackwardPacks& packs_;
  PairGradient gradient_;
};

}  // namespace

std::size_t attend_backward_bytes(const Context& context, const BackwardArgs& args) {
  core::Arena arena(nullptr);
  BackwardPacks(arena, context, args, nullptr, {});
  return arena.used();
}

void attend_backward(const Context& context, const BackwardArgs& args, const float* delta,
                     const CoarseGradients& coarse, Workspace workspace) {
  core::Arena arena(workspace.data);
  const BackwardPacks packs(arena, context, args, delta, coarse);
  AttendBackward(context, args, packs).run();
}

}  // namespace vidsparse::cpu
