#pragma once

#include <cstddef>
#include <cstdint>

#include "core/workspace.hpp"
#include "cpu/backward.hpp"
#include "cpu/pair_gradient.hpp"

namespace vidsparse::cpu {

/// A worker's memory.
struct BackwardScratch {
  std::int64_t* tokens;  ///< of a tile
  std::uint32_t* keys;   ///< A operands K [rows][depth], V [rows][depth], K^T [D][rows in words]
  std::byte* pairs;      ///< of PairGradient
  /// Q^T, dO^T, Q, dO of a batch of fragments in fp32; rows of a finished dQ; pairs of rows on
  /// their way to K^T.
  float* expanded;
};

/// A query head: its index among the packed ones, and what it is.
struct PackedHead {
  std::int64_t index;
  std::int64_t batch;
  std::int64_t head;
};

/// The memory of attention's backward for a few key heads at a time, how operands get into it and
/// gradients out of it. Queries are packed whole; keys are loaded a block at a time, since all
/// query tiles of a chunk pass by a block while it lies in the cache.
class BackwardPacks {
 public:
  /// Takes its memory from the arena; over a null one it only counts.
  BackwardPacks(core::Arena& arena, const Context& context, const BackwardArgs& args,
                const float* delta, const CoarseGradients& coarse);

  /// Key heads that are packed at a time, and the chunks a head is cut in. The latter decide the
  /// order of summands and depend on the problem alone.
  std::int64_t heads() const { return packed_heads_; }
  std::int64_t chunks() const { return chunks_; }
  /// Rounds that each chunk of a packed key head has behind it.
  std::int32_t* rounds(std::int64_t index) const { return rounds_ + index * chunks_; }
  BackwardScratch scratch(int worker) const;

  PackedHead query_head(std::int64_t first, std::int64_t index) const;
  std::int64_t query_count(std::int64_t batch, std::int64_t tile) const {
    return query_counts_.row(batch)[tile];
  }
  std::int64_t key_count(std::int64_t batch, std::int64_t tile) const {
    return key_counts_.row(batch)[tile];
  }

  void pack_queries(const PackedHead& at, std::int64_t tile, const BackwardScratch& scratch) const;
  /// From here on dk and dv of a tile hold nothing.
  void renew_keys(std::int64_t index, std::int64_t tile) const;
  /// A fragment of queries as it was packed: 16-bit words where `Context::expands()`.
  QueryOperands queries(std::int64_t index, std::int64_t tile, std::int64_t first, int valid) const;
  /// Tokens begin..begin + count - 1 of a key tile of pair (batch, key head) `pair`.
  KeyOperands load_keys(std::int64_t pair, std::int64_t index, std::int64_t tile,
                        std::int64_t begin, std::int64_t count,
                        const BackwardScratch& scratch) const;
  /// Writes dq, or dk and dv, of a tile: both branches added, rounded once, pads zero.
  void finish_queries(const PackedHead& at, std::int64_t tile,
                      const BackwardScratch& scratch) const;
  void finish_keys(std::int64_t pair, std::int64_t index, std::int64_t tile,
                   const BackwardScratch& scratch) const;

 private:
  BackwardScratch lay_out_scratch(core::Arena& arena) const;
  int width_of(std::int64_t count, const Side& side) const {
    return static_cast<int>(round_up(count, side.multiple()));
  }
  /// A fragment's place in `queries_`, in words. What belongs to a fragment lies together, for the
  /// sake of cache sets (arrays of a power of two apart would share them) and of prefetching.
  std::int64_t query_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.query.slots() + slot) * slot_words_;
  }
  /// Whether the gradients of a fragment or block that starts at a slot hold nothing yet: saves
  /// writing zeros to be read again.
  static constexpr std::int64_t kFlagSlots = 16;
  std::uint8_t* key_flag(std::int64_t index, std::int64_t slot) const {
    return fresh_keys_ + (index * context_.key.slots() + slot) / kFlagSlots;
  }
  std::int64_t key_offset(std::int64_t index, std::int64_t slot) const {
    return (index * context_.key.slots() + slot) * d_;
  }
  float lse_of(const PackedHead& at, std::int64_t token) const;
  void pack(const HeadRows<const void*>& source, const std::int64_t* tokens, int count, int width,
            const float* lse, const void* transposed_pack, const void* straight_pack) const;
  void load_rows(const HeadRows<const void*>& source, const std::int64_t* tokens, int valid,
                 int rows, std::uint32_t* out) const;
  void transpose_keys(const KeyOperands& keys, std::uint32_t* out,
                      const BackwardScratch& scratch) const;
  void finish(const float* acc, float factor, const float* coarse, std::int64_t count,
              std::int64_t rows, const std::int64_t* tokens, const HeadRows<void*>& out) const;
  void clear(const HeadRows<void*>& out, const std::int64_t* tokens, std::int64_t count) const;

  const Context& context_;
  const Kernels& kernels_;
  const BackwardArgs& args_;
  const float* delta_of_tokens_;  ///< [B][H][Sq]
  CoarseGradients coarse_;
  int d_;
  int words_;
  int depth_;
  float scale_;
  std::int64_t chunks_;
  std::int64_t packed_heads_;
  std::int32_t* query_count_words_;
  std::int32_t* key_count_words_;
  Counts query_counts_;
  Counts key_counts_;
  // Per packed query head.
  /// Fragment by fragment Q^T [row_words][width], dO^T, dO [width in words][D], Q, and in fp32
  /// dQ^T [D][width]. Words are pairs of elements for 16-bit types.
  std::uint32_t* queries_;
  std::int64_t slot_words_;      ///< of all that, for a token
  float* lse_;                   ///< [slots]
  float* delta_;                 ///< [slots]
  std::uint8_t* fresh_queries_;  ///< [slots / kFlagSlots]
  // Per packed key head.
  std::uint8_t* fresh_keys_;  ///< [slots / kFlagSlots]
  float* dk_;                 ///< [slots][D]
  float* dv_;                 ///< [slots][D]
  std::int32_t* rounds_;
  std::byte* scratch_;
  std::size_t scratch_bytes_;
};

}  // namespace vidsparse::cpu
