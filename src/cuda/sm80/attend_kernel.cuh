#pragma once

#include <cstdint>

#include "cuda/common/attend_epilogue.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/warp_mma.cuh"
#include "cuda/sm80/attend_config.hpp"
#include "cuda/sm80/attend_parameters.hpp"
#include "cuda/sm80/fragment_copy.cuh"
#include "cuda/sm80/item.cuh"
#include "cuda/sm80/key_list.cuh"

namespace vidsparse::cuda::sm80 {

/// One query fragment of one head against the key fragments of its list.
template <class T, class Config>
class AttendBlock {
 public:
  static constexpr int kD = Config::kHeadDim;
  static constexpr int kRowTiles = Config::kRowTiles;

  __device__ AttendBlock(const AttendParameters<T>& parameters, char* shared)
      : p_(parameters), shared_(shared), address_(ptx::shared_address(shared)) {
    const int query_row = lane_ % 16;
    const int key_row = lane_ / 16 * 8 + lane_ % 8;
    first_slot_ = static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles;
    query_ = address_ + Config::kQuery +
             swizzled<Config::kRowBytes>(first_slot_ + query_row, lane_ / 16);
    keys_ = address_ + Config::kKeys + swizzled<Config::kRowBytes>(key_row, lane_ / 8 % 2);
    values_ = address_ + Config::kValues + swizzled<Config::kRowBytes>(query_row, lane_ / 16);
  }

  __device__ void run() {
    const char* keys;
    const char* values;
    bool more;
    {
      const Item item = Item::current(p_);
      const Fragment rows = item.rows(p_);
      load_query(rows, item);
      const int key_head = item.head / p_.group;
      keys = p_.k.data + item.batch * p_.k.batch_bytes + key_head * p_.k.head_bytes;
      values = p_.v.data + item.batch * p_.v.batch_bytes + key_head * p_.v.head_bytes;
      more = rows.count() > 0;
    }
    KeyList<T, Config::kListed> list(p_, shared_ + Config::kList);
    FragmentCopy<Config::kThreads, Config::kRowBytes> copy(p_.key);

    Output output[kRowTiles];
    Softmax softmax[2] = {Softmax(p_.scale_log2), Softmax(p_.scale_log2)};  // kRowTiles of them
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (float& value : output[m]) value = 0;
    }

    ListedFragment fragment;
    more = more && list.next(fragment);
    if (more) copy.start(address_ + Config::kKeys, keys, p_.k.token_bytes, fragment);
    ptx::commit_copies();
    std::uint32_t query[Config::kQueryInRegisters ? kD / 16 : 1][4];
    if constexpr (Config::kQueryInRegisters) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) ptx::load_matrices(query[k], query_ ^ k * 32);
    }
    int slot = 0;  // of K
    while (more) {
      ptx::wait_copy_groups<0>();
      __syncthreads();  // K is there; the former values, and their K, have been read
      copy.start(address_ + Config::kValues, values, p_.v.token_bytes, fragment);
      ptx::commit_copies();
      const std::uint64_t valid = fragment.valid;
      const std::uint32_t at = keys_ + slot * Config::kFragmentBytes;
      if constexpr (Config::kKeySlots == 2) {
        slot ^= 1;
        more = start_keys(list, copy, keys, slot, fragment);
      }
      Scores scores[kRowTiles];
      Weights weights[kRowTiles];
      multiply_keys(at, query, scores);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        if (~valid != 0) mask_scores(valid, lane_, scores[m]);
        softmax[m].weigh(scores[m]);
        softmax[m].rescale(output[m]);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          weights[m][i] = pack<T>(scores[m][2 * i], scores[m][2 * i + 1]);
        }
      }
      ptx::wait_copy_groups<Config::kKeySlots - 1>();
      __syncthreads();  // V is there; K has been read
      if constexpr (Config::kKeySlots == 1) more = start_keys(list, copy, keys, 0, fragment);
      multiply_values(weights, output);
    }

    const Item item = Item::current(p_);
    const Fragment rows = item.rows(p_);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      softmax[m].finish();
      store_rows<T, kD>(p_, item.batch, item.head, item.tile, rows, first_slot_ + 16 * m, lane_, softmax[m],
                        output[m]);
    }
  }

 private:
  // Accumulators of 16 rows: value 4 i + j lies in columns 8 i and on.
  using Scores = float[32];
  using Output = float[kD / 2];
  using Weights = std::uint32_t[16];  // in pairs, as a product's factor

  /// The query rows as the first product's factor. Rows without a token are zero.
  __device__ void load_query(const Fragment& rows, const Item& item) {
    constexpr int kChunks = kD / 8;  // of a row
#pragma unroll 4
    for (int i = 0; i < 64 * kChunks / Config::kThreads; ++i) {
      const int at = i * Config::kThreads + static_cast<int>(threadIdx.x);
      const int token = rows.token(at / kChunks);
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (token >= 0) {
        eight = __ldg(reinterpret_cast<const uint4*>(p_.q.row(item.batch, token, item.head)) + at % kChunks);
        for (std::uint32_t* word : {&eight.x, &eight.y, &eight.z, &eight.w}) {
          *word = (*word & p_.query_and) ^ p_.query_xor;
        }
      }
      *reinterpret_cast<uint4*>(shared_ + Config::kQuery +
                                swizzled<Config::kRowBytes>(at / kChunks, at % kChunks)) = eight;
    }
  }

  /// Asks for the next fragment's K; always a group of copies, so that groups can be counted.
  template <class List, class Copy>
  __device__ bool start_keys(List& list, Copy& copy, const char* keys, int slot,
                             ListedFragment& fragment) {
    const bool more = list.next(fragment);
    if (more) {
      copy.start(address_ + Config::kKeys + slot * Config::kFragmentBytes, keys,
                 p_.k.token_bytes, fragment);
    }
    ptx::commit_copies();
    return more;
  }

  template <class Query>
  __device__ void multiply_keys(std::uint32_t keys, const Query& query,
                                Scores (&scores)[kRowTiles]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (float& value : scores[m]) value = 0;
    }
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      // 16 columns are 32 bytes of a row; no carry from a swizzled chunk's address reaches them.
      std::uint32_t rows[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        if constexpr (Config::kQueryInRegisters) {
#pragma unroll
          for (int i = 0; i < 4; ++i) rows[m][i] = query[k][i];
        } else {
          ptx::load_matrices(rows[m], (query_ ^ k * 32) + m * 16 * Config::kRowBytes);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // 16 keys
        std::uint32_t four[4];
        ptx::load_matrices(four, (keys ^ k * 32) + n * 16 * Config::kRowBytes);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply(scores[m], 8 * n, rows[m], four[0], four[1]);
          multiply(scores[m], 8 * n + 4, rows[m], four[2], four[3]);
        }
      }
    }
  }

  __device__ void multiply_values(const Weights (&weights)[kRowTiles],
                                  Output (&output)[kRowTiles]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 16 keys
#pragma unroll
      for (int n = 0; n < kD / 16; ++n) {
        std::uint32_t four[4];
        ptx::load_matrices_transposed(four, (values_ ^ n * 32) + k * 16 * Config::kRowBytes);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply(output[m], 8 * n, weights[m] + 4 * k, four[0], four[1]);
          multiply(output[m], 8 * n + 4, weights[m] + 4 * k, four[2], four[3]);
        }
      }
    }
  }

  template <int N>
  __device__ static void multiply(float (&sums)[N], int at, const std::uint32_t* rows,
                                  std::uint32_t column0, std::uint32_t column1) {
    ptx::mma_m16n8k16<T>(sums[at], sums[at + 1], sums[at + 2], sums[at + 3], rows, column0,
                         column1);
  }

  const AttendParameters<T>& p_;
  char* shared_;
  std::uint32_t address_;
  int lane_ = static_cast<int>(threadIdx.x) % 32;
  int first_slot_;  // of the warp's rows
  // This lane's first matrix rows, as ldmatrix wants them.
  std::uint32_t query_;
  std::uint32_t keys_;
  std::uint32_t values_;
};

template <class T, class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    attend_kernel(const __grid_constant__ AttendParameters<T> parameters) {
  extern __shared__ __align__(1024) char shared[];
  AttendBlock<T, Config>(parameters, shared).run();
}

}  // namespace vidsparse::cuda::sm80
