#pragma once

#include <cstdint>

#include "cuda/common/attend_epilogue.cuh"
#include "cuda/common/row_words.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/sm80/attend_config.hpp"
#include "cuda/sm80/attend_parameters.hpp"
#include "cuda/sm80/fragment_copy.cuh"
#include "cuda/sm80/fragment_list.cuh"
#include "cuda/sm80/item.cuh"
#include "cuda/sm80/products.cuh"

namespace vidsparse::cuda::sm80 {

/// One query fragment of one head against the key fragments of its list.
template <class T, class Config>
class AttendBlock {
 public:
  static constexpr int kD = Config::kHeadDim;
  static constexpr int kRowTiles = Config::kRowTiles;
  static constexpr int kRowBytes = Config::kRowBytes;

  __device__ AttendBlock(const AttendParameters<T>& parameters, char* shared)
      : p_(parameters),
        shared_(shared),
        address_(ptx::shared_address(shared)),
        first_slot_(static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles),
        query_(address_ + Config::kQuery + first_slot_ * kRowBytes + first_row<kRowBytes>(lane_)),
        keys_(address_ + Config::kKeys + first_column<kRowBytes>(lane_)),
        values_(address_ + Config::kValues + first_row<kRowBytes>(lane_)),
        list_(p_.key, p_.fragments_per_tile, p_.key_fragments, shared + Config::kList),
        copy_(p_.key) {}

  __device__ void run() {
    const char* keys;
    const char* values;
    bool more;
    {
      const Item item = Item::current(p_.blocks, p_.fragments_per_tile);
      const Fragment rows = item.rows(p_.query);
      load_query(rows, item);
      keys = p_.k.head(item.batch, item.head / p_.group);
      values = p_.v.head(item.batch, item.head / p_.group);
      more = rows.count() > 0;
    }
    Output output[kRowTiles];
    Softmax softmax[2] = {Softmax(p_.scale_log2), Softmax(p_.scale_log2)};  // kRowTiles of them
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (float& value : output[m]) value = 0;
    }

    ListedFragment fragment;
    more = more && start_keys(keys, 0, fragment);
    std::uint32_t query[Config::kQueryInRegisters ? kD / 16 : 1][4];
    if constexpr (Config::kQueryInRegisters) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) ptx::load_matrices(query[k], columns_further(query_, k));
    }
    const auto load_rows = [&](int k, int m, std::uint32_t(&rows)[4]) {
      if constexpr (Config::kQueryInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[i] = query[k][i];
      } else {
        ptx::load_matrices(rows, columns_further(query_, k) + m * 16 * kRowBytes);
      }
    };
    int slot = 0;  // of K
    while (more) {
      ptx::wait_copy_groups<0>();
      __syncthreads();  // K is there; the former values, and their K, have been read
      copy_.start_listed(list_, fragment,
                         CopiedRows{address_ + Config::kValues, values, p_.v.token_bytes});
      ptx::commit_copies();
      const std::uint64_t valid = fragment.valid;
      const std::uint32_t at = keys_ + slot * Config::kFragmentBytes;
      if constexpr (Config::kKeySlots == 2) {
        slot ^= 1;
        more = start_keys(keys, slot, fragment);
      }
      Scores scores[kRowTiles];
      PackedWeights<kRowTiles> weights;
      multiply_transposed<T, kD>(scores, load_rows, at);
      weigh(valid, softmax, scores, output);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          weights.words[m][i] = pack<T>(scores[m][2 * i], scores[m][2 * i + 1]);
        }
      }
      ptx::wait_copy_groups<Config::kKeySlots - 1>();
      __syncthreads();  // V is there; K has been read
      if constexpr (Config::kKeySlots == 1) more = start_keys(keys, 0, fragment);
      multiply_added<T, kD>(output, weights, values_);
    }

    const Item item = Item::current(p_.blocks, p_.fragments_per_tile);
    const Fragment rows = item.rows(p_.query);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      softmax[m].finish();
      store_rows<T, kD>(p_, item.batch, item.head, item.tile, rows, first_slot_ + 16 * m, lane_,
                        softmax[m], output[m]);
    }
  }

 private:
  // Accumulators of 16 rows, as products.cuh has them.
  using Scores = float[32];
  using Output = float[kD / 2];

  /// Scores become weights, all row tiles together: their dependent steps hide each other.
  __device__ void weigh(std::uint64_t valid, Softmax (&softmax)[2], Scores (&scores)[kRowTiles],
                        Output (&output)[kRowTiles]) {
    if (~valid != 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) mask_scores(valid, lane_, scores[m]);
    }
    float most[kRowTiles][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) Softmax::find_most(scores[m], most[m]);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) outgrown = outgrown || softmax[m].outgrown(most[m]);
    if (__any_sync(~0U, outgrown)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        softmax[m].grow(most[m]);
        softmax[m].rescale_always(output[m]);
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) softmax[m].exponentiate(scores[m]);
  }

  /// The query rows as the first product's factor. Rows without a token are zero.
  __device__ void load_query(const Fragment& rows, const Item& item) {
    constexpr int kChunks = kD / 8;  // of a row
#pragma unroll 4
    for (int i = 0; i < 64 * kChunks / Config::kThreads; ++i) {
      const int at = i * Config::kThreads + static_cast<int>(threadIdx.x);
      const int token = rows.token(at / kChunks);
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (token >= 0) {
        eight = __ldg(reinterpret_cast<const uint4*>(p_.q.row(item.batch, token, item.head)) +
                      at % kChunks);
        for (std::uint32_t* word : {&eight.x, &eight.y, &eight.z, &eight.w}) {
          *word = (*word & p_.query_and) ^ p_.query_xor;
        }
      }
      *reinterpret_cast<uint4*>(shared_ + Config::kQuery +
                                swizzled<kRowBytes>(at / kChunks, at % kChunks)) = eight;
    }
  }

  /// Asks for the next fragment's K; always a group of copies, so that groups can be counted.
  __device__ bool start_keys(const char* keys, int slot, ListedFragment& fragment) {
    const bool more = list_.next(fragment, [this] {
      const Item item = Item::current(p_.blocks, p_.fragments_per_tile);
      return ListSource{
          p_.mask + item.batch * p_.mask_batch + item.head * p_.mask_head + item.tile * p_.mask_row,
          p_.table + item.batch * p_.table_batch};
    });
    if (more) {
      copy_.start_listed(list_, fragment,
                         CopiedRows{address_ + Config::kKeys + slot * Config::kFragmentBytes, keys,
                                    p_.k.token_bytes});
    }
    ptx::commit_copies();
    return more;
  }

  const AttendParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int first_slot_;  // of the warp's rows
  // Lane addresses, see products.cuh.
  std::uint32_t query_;
  std::uint32_t keys_;
  std::uint32_t values_;
  FragmentList<Config::kListed> list_;
  FragmentCopy<Config::kThreads, kRowBytes> copy_;
};

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    attend_kernel(const __grid_constant__ AttendParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  if (!Item::exists(parameters.blocks)) return;
  AttendBlock<T, Config>(parameters, shared).run();
}

}  // namespace vidsparse::cuda::sm80
