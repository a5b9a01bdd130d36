// Backward of the pooled branch: softmax attention of pooled queries over pooled keys, in two
// passes without atomics, dqc by query tile, dkc and dvc by key tile; each recomputes the weights.
//
// Plain fp32 arithmetic: it keeps infinities and NaN where the formulas put them, which split bf16
// products would not, and the stage is small.

#include <algorithm>
#include <type_traits>

#include "cuda/common/backward.hpp"
#include "cuda/ptx/async_copy.cuh"
#include "cuda/ptx/warp_mma.cuh"

namespace vidsparse::cuda {
namespace {

struct CoarseParameters {
  Side query;
  Side key;
  const float* qc;  ///< [B, H, Nq, D], as d_oc and dqc
  const float* d_oc;
  const float4* rows;  ///< [B, H, Nq]: max, 1 / sum, d_oc . oc
  const float* kc;     ///< [B, G, Nk, D], as vc, dkc, dvc
  const float* vc;
  float* dqc;
  float* dkc;
  float* dvc;
  int heads;
  int group;
  int batch;
  float scale;
};

/// How a block is laid out. It owns kRows tiles of one side and walks the other side's, kColumns at
/// once. Shared memory fits 99 KB, so a multiprocessor of sm_90 has two blocks.
template <int kDepth>
struct CoarseConfig {
  static constexpr int kD = kDepth;
  static constexpr int kThreads = 128;
  static constexpr int kRows = 64;
  static constexpr int kColumns = kDepth == 128 ? 16 : 32;
  // Four words more than a row, so that eight rows' reads of 16 bytes fall into different banks.
  static constexpr int kPitch = kDepth + 4;
  static constexpr int kPairPitch = kColumns + 4;

  struct Shared {
    alignas(16) float own[2][kRows * kPitch];       ///< qc and d_oc, or kc and vc
    alignas(16) float other[2][kColumns * kPitch];  ///< kc and vc, or qc and d_oc
    alignas(16) float d_scores[kRows * kPairPitch];
    alignas(16) float weights[kRows * kPairPitch];  ///< by key only
    float4 own_facts[kRows];  ///< of queries as `rows`; of keys y is 0 where a tile is empty
    float4 other_facts[kColumns];
  };
};

template <class Config, bool kByKey>
class CoarsePass {
 public:
  static constexpr int kD = Config::kD;

  __device__ CoarsePass(const CoarseParameters& p, typename Config::Shared& shared, int batch,
                        int head, int first)
      : p_(p), shared_(shared), batch_(batch), head_(head), first_(first) {}

  /// `head`: of the keys in the pass by key, else of the queries.
  __device__ void run() {
    load<kByKey>(shared_.own[0], shared_.own[1], shared_.own_facts, Config::kRows, head_, first_);
    ptx::wait_copies();
    __syncthreads();
    if constexpr (kByKey) {
      for (int member = 0; member < p_.group; ++member) walk(head_ * p_.group + member);
      store(d_first_, p_.dkc, p_.scale);
      store(d_second_, p_.dvc, 1);
    } else {
      walk(head_ / p_.group);
      store(d_first_, p_.dqc, p_.scale);
    }
  }

 private:
  using Sums = float[8][kD / 16];

  __device__ void walk(int other_head) {
    const int tiles = kByKey ? p_.query.tiles : p_.key.tiles;
    for (int first = 0; first < tiles; first += Config::kColumns) {
      load<!kByKey>(shared_.other[0], shared_.other[1], shared_.other_facts, Config::kColumns,
                    other_head, first);
      ptx::wait_copies();
      __syncthreads();
      weigh();
      __syncthreads();
      accumulate(d_first_, shared_.d_scores, shared_.other[0]);
      if constexpr (kByKey) accumulate(d_second_, shared_.weights, shared_.other[1]);
      __syncthreads();
    }
  }

  /// `count` tiles' pooled rows and facts. Rows that give no gradient, and places past the last
  /// tile, are zeros. (Pooled vectors of empty key tiles are.)
  template <bool kOfKeys>
  __device__ void load(float* to_first, float* to_second, float4* facts, int count, int head,
                       int first) {
    const int tiles = kOfKeys ? p_.key.tiles : p_.query.tiles;
    const int heads = kOfKeys ? p_.heads / p_.group : p_.heads;
    const std::int64_t base = (std::int64_t{batch_} * heads + head) * tiles;
    const float* from_first = (kOfKeys ? p_.kc : p_.qc) + base * kD;
    const float* from_second = (kOfKeys ? p_.vc : p_.d_oc) + base * kD;
    constexpr int kParts = kD / 4;
#pragma unroll 4
    for (int i = thread_; i < count * kParts; i += Config::kThreads) {
      const int row = i / kParts;
      const int column = i % kParts * 4;
      const int tile = min(first + row, tiles - 1);
      bool there = first + row < tiles;
      if constexpr (!kOfKeys) there = there && p_.rows[base + tile].y != 0;
      const std::int64_t from = std::int64_t{tile} * kD + column;
      const int to = row * Config::kPitch + column;
      ptx::copy_async_16(ptx::shared_address(to_first + to), from_first + from, there);
      ptx::copy_async_16(ptx::shared_address(to_second + to), from_second + from, there);
    }
    if (thread_ >= count) return;
    const int tile = first + thread_;
    float4 fact = make_float4(0, 0, 0, 0);
    if (tile < tiles) {
      if constexpr (kOfKeys) {
        fact.y = p_.key.valid_tokens(batch_, tile) > 0 ? 1 : 0;
      } else {
        fact = p_.rows[base + tile];
      }
    }
    facts[thread_] = fact;
  }

  /// Weights and gradients of scores of all own tiles and the other side's that are loaded.
  __device__ void weigh() {
    constexpr int kWide = Config::kColumns / 8;
    const int row = thread_ / 8;     // and each 16th after it
    const int column = thread_ % 8;  // and each 8th
    float scores[4][kWide] = {};
    float d_weights[4][kWide] = {};
    multiply(scores, shared_.own[0] + row * Config::kPitch,
             shared_.other[0] + column * Config::kPitch);
    multiply(d_weights, shared_.own[1] + row * Config::kPitch,
             shared_.other[1] + column * Config::kPitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const float4 own = shared_.own_facts[row + 16 * i];
        const float4 other = shared_.other_facts[column + 8 * j];
        const float4 query = kByKey ? other : own;
        float weight = 0;
        float d_score = 0;
        if (own.y != 0 && other.y != 0) {
          weight = expf(fmaf(scores[i][j], p_.scale, -query.x)) * query.y;
          d_score = weight * (d_weights[i][j] - query.z);
        }
        const int at = (row + 16 * i) * Config::kPairPitch + column + 8 * j;
        shared_.d_scores[at] = d_score;
        if constexpr (kByKey) shared_.weights[at] = weight;
      }
    }
  }

  template <int kWide>
  __device__ static void multiply(float (&sums)[4][kWide], const float* own, const float* other) {
#pragma unroll 4
    for (int k = 0; k < kD; k += 4) {
      float4 left[4];
      float4 right[kWide];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = *reinterpret_cast<const float4*>(own + 16 * i * Config::kPitch + k);
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        right[j] = *reinterpret_cast<const float4*>(other + 8 * j * Config::kPitch + k);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          sums[i][j] = fmaf(left[i].x, right[j].x, sums[i][j]);
          sums[i][j] = fmaf(left[i].y, right[j].y, sums[i][j]);
          sums[i][j] = fmaf(left[i].z, right[j].z, sums[i][j]);
          sums[i][j] = fmaf(left[i].w, right[j].w, sums[i][j]);
        }
      }
    }
  }

  /// Adds pairs [kRows, kColumns] times rows [kColumns, D]: of this thread rows thread / 16 and
  /// each eighth after it, columns by fours.
  __device__ void accumulate(Sums& sums, const float* pairs, const float* rows) const {
    pairs += thread_ / 16 * Config::kPairPitch;
    rows += thread_ % 16 * 4;
#pragma unroll 1
    for (int j = 0; j < Config::kColumns; j += 4) {
      float left[8][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        *reinterpret_cast<float4*>(left[i]) =
            *reinterpret_cast<const float4*>(pairs + 8 * i * Config::kPairPitch + j);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int part = 0; part < kD / 64; ++part) {
          const float4 right =
              *reinterpret_cast<const float4*>(rows + (j + k) * Config::kPitch + part * 64);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            float* sum = sums[i] + part * 4;
            sum[0] = fmaf(left[i][k], right.x, sum[0]);
            sum[1] = fmaf(left[i][k], right.y, sum[1]);
            sum[2] = fmaf(left[i][k], right.z, sum[2]);
            sum[3] = fmaf(left[i][k], right.w, sum[3]);
          }
        }
      }
    }
  }

  /// What each valid token of the own tiles receives.
  __device__ void store(const Sums& sums, float* gradients, float factor) const {
    const Side& side = kByKey ? p_.key : p_.query;
    const int heads = kByKey ? p_.heads / p_.group : p_.heads;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = thread_ / 16 + 8 * i;
      const int tile = first_ + row;
      if (tile >= side.tiles) continue;
      const int count = side.valid_tokens(batch_, tile);
      const bool gives = count > 0 && shared_.own_facts[row].y != 0;
      const float share = gives ? factor / static_cast<float>(count) : 0;
      float* to = gradients + ((std::int64_t{batch_} * heads + head_) * side.tiles + tile) * kD +
                  thread_ % 16 * 4;
#pragma unroll
      for (int part = 0; part < kD / 64; ++part) {
        const float* sum = sums[i] + part * 4;
        *reinterpret_cast<float4*>(to + part * 64) =
            gives ? make_float4(sum[0] * share, sum[1] * share, sum[2] * share, sum[3] * share)
                  : make_float4(0, 0, 0, 0);
      }
    }
  }

  const CoarseParameters& p_;
  typename Config::Shared& shared_;
  int batch_;
  int head_;
  int first_;
  int thread_ = static_cast<int>(threadIdx.x);
  Sums d_first_ = {};
  Sums d_second_ = {};
};

/// Blocks of key tiles, which have more to do, then blocks of query tiles; y: heads and batch
/// entries.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2)
    coarse_backward_kernel(const __grid_constant__ CoarseParameters p) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const auto walk = [&](auto by_key, int block, int heads) {
    for (int plane = static_cast<int>(blockIdx.y); plane < p.batch * heads;
         plane += static_cast<int>(gridDim.y)) {
      CoarsePass<Config, decltype(by_key)::value>(p, shared, plane / heads, plane % heads,
                                                  block * Config::kRows)
          .run();
      __syncthreads();
    }
  };
  const int block = static_cast<int>(blockIdx.x);
  const int key_blocks = (p.key.tiles + Config::kRows - 1) / Config::kRows;
  if (block < key_blocks) {
    walk(std::true_type{}, block, p.heads / p.group);
  } else {
    walk(std::false_type{}, block - key_blocks, p.heads);
  }
}

template <class Visit>
void with_config(const Context& context, Visit&& visit) {
  context.head_dim() == 64 ? visit(CoarseConfig<64>{}) : visit(CoarseConfig<128>{});
}

}  // namespace

void prepare_coarse_backward(const Context& context) {
  with_config(context, [&]<class Config>(Config) {
    check(cudaFuncSetAttribute(coarse_backward_kernel<Config>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(typename Config::Shared)),
          "coarse backward");
  });
}

void coarse_backward(const Context& context, const BackwardArgs& args, const BackwardParts& parts,
                     cudaStream_t stream) {
  CoarseParameters p{};
  p.query = with_lengths(context.query, args.lengths.query);
  p.key = with_lengths(context.key, args.lengths.key);
  p.qc = static_cast<const float*>(parts.pool.qc.data);
  p.kc = static_cast<const float*>(parts.pool.kc.data);
  p.vc = static_cast<const float*>(parts.pool.vc.data);
  p.d_oc = static_cast<const float*>(parts.d_oc.data);
  p.rows = static_cast<const float4*>(parts.coarse_rows.data);
  p.dqc = static_cast<float*>(parts.dqc.data);
  p.dkc = static_cast<float*>(parts.dkc.data);
  p.dvc = static_cast<float*>(parts.dvc.data);
  p.heads = static_cast<int>(context.heads());
  p.group = static_cast<int>(context.group());
  p.batch = static_cast<int>(context.batch());
  p.scale = static_cast<float>(context.scale(args.scale));
  with_config(context, [&]<class Config>(Config) {
    const auto blocks = [](int tiles) { return (tiles + Config::kRows - 1) / Config::kRows; };
    const dim3 grid(
        static_cast<unsigned>(blocks(p.key.tiles) + blocks(p.query.tiles)),
        static_cast<unsigned>(std::min<std::int64_t>(context.batch() * context.heads(), 65535)));
    if (grid.x == 0) return;
    coarse_backward_kernel<Config>
        <<<grid, Config::kThreads, sizeof(typename Config::Shared), stream>>>(p);
    check(cudaGetLastError(), "coarse backward");
  });
}

}  // namespace vidsparse::cuda
