// Backward of the pooled branch: softmax attention of pooled queries over pooled keys, in two
// passes without atomics, dqc by query tile, dkc and dvc by key tile; each recomputes the weights.
//
// Products are of tf32, rounded once as they come into shared memory: 11 bits where the gradients
// they are added to have 8 or 11, and infinities and NaN stay what they are, which they would not
// in split bf16. Where the forward needs more, in the choice of tiles, nothing is chosen here.

#include <algorithm>
#include <type_traits>

#include "cuda/common/backward.hpp"
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

/// How a block is laid out. It owns kRows tiles of one side, a warp 16 of them, and walks the other
/// side's, kColumns at once. Shared memory fits 99 KB, so a multiprocessor of sm_90 has two blocks.
template <int kDepth>
struct CoarseConfig {
  static constexpr int kD = kDepth;
  static constexpr int kThreads = 128;
  static constexpr int kRows = 64;
  static constexpr int kColumns = kDepth == 128 ? 16 : 32;
  // Words from a row to the next. 4 more than a multiple of 32 (and 8 more than one of 16 by twos)
  // spreads a warp's reads along rows and along columns over all banks.
  static constexpr int kPitch = kDepth + 4;

  struct Shared {
    alignas(16) float own[2][kRows * kPitch];       ///< qc and d_oc, or kc and vc
    alignas(16) float other[2][kColumns * kPitch];  ///< kc and vc, or qc and d_oc
    float4 own_facts[kRows];  ///< of queries as `rows`; of keys y is 0 where a tile is empty
    float4 other_facts[kColumns];
  };
};

/// A thread block at work. In a warp's products, with g = lane / 4 and t = lane % 4, a lane holds
/// pairs of own rows g and g + 8 with columns 2t and 2t + 1 of each eight.
template <class Config, bool kByKey>
class CoarsePass {
 public:
  static constexpr int kD = Config::kD;

  /// `head`: of the keys in the pass by key, else of the queries.
  __device__ CoarsePass(const CoarseParameters& p, typename Config::Shared& shared, int batch,
                        int head, int first)
      : p_(p), shared_(shared), batch_(batch), head_(head), first_(first) {}

  __device__ void run() {
    for (int base = 0; base < Config::kRows; base += Config::kColumns) {
      Loaded loaded;
      fetch<kByKey>(loaded, head_, first_ + base);
      put(loaded, shared_.own[0] + base * Config::kPitch, shared_.own[1] + base * Config::kPitch,
          shared_.own_facts + base);
    }
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
  using Sums = float[kD / 8][4];
  using Pairs = float[Config::kColumns / 8][4];

  /// A thread's share of kColumns tiles on their way to shared memory.
  struct Loaded {
    static constexpr int kParts = kD / 4;  // of a row
    static constexpr int kSteps = Config::kColumns * kParts / Config::kThreads;
    float4 first[kSteps];
    float4 second[kSteps];
    float4 fact;  // of tile `thread`, if it is one of them
  };

  __device__ void walk(int other_head) {
    const int tiles = kByKey ? p_.query.tiles : p_.key.tiles;
    Loaded loaded;
    if (tiles > 0) fetch<!kByKey>(loaded, other_head, 0);
    for (int first = 0; first < tiles; first += Config::kColumns) {
      put(loaded, shared_.other[0], shared_.other[1], shared_.other_facts);
      __syncthreads();
      if (first + Config::kColumns < tiles) {
        fetch<!kByKey>(loaded, other_head, first + Config::kColumns);
      }
      Pairs weights = {};
      Pairs d_scores = {};
      multiply(weights, shared_.own[0], shared_.other[0]);
      multiply(d_scores, shared_.own[1], shared_.other[1]);
      weigh(weights, d_scores);
      accumulate(d_first_, d_scores, shared_.other[0]);
      if constexpr (kByKey) accumulate(d_second_, weights, shared_.other[1]);
      __syncthreads();
    }
  }

  /// Pooled rows and facts of kColumns tiles. Rows that give no gradient, and places past the last
  /// tile, are zeros. (Pooled vectors of empty key tiles are.)
  template <bool kOfKeys>
  __device__ void fetch(Loaded& loaded, int head, int first) const {
    const int tiles = kOfKeys ? p_.key.tiles : p_.query.tiles;
    const int heads = kOfKeys ? p_.heads / p_.group : p_.heads;
    const std::int64_t base = (std::int64_t{batch_} * heads + head) * tiles;
    const float* from_first = (kOfKeys ? p_.kc : p_.qc) + base * kD;
    const float* from_second = (kOfKeys ? p_.vc : p_.d_oc) + base * kD;
#pragma unroll
    for (int i = 0; i < Loaded::kSteps; ++i) {
      const int at = i * Config::kThreads + thread_;
      const int tile = first + at / Loaded::kParts;
      bool there = tile < tiles;
      if constexpr (!kOfKeys) there = there && p_.rows[base + tile].y != 0;
      const std::int64_t from = std::int64_t{tile} * kD + at % Loaded::kParts * 4;
      const float4 zero = make_float4(0, 0, 0, 0);
      loaded.first[i] = there ? *reinterpret_cast<const float4*>(from_first + from) : zero;
      loaded.second[i] = there ? *reinterpret_cast<const float4*>(from_second + from) : zero;
    }
    loaded.fact = make_float4(0, 0, 0, 0);
    const int tile = first + thread_;
    if (thread_ >= Config::kColumns || tile >= tiles) return;
    if constexpr (kOfKeys) {
      loaded.fact.y = p_.key.valid_tokens(batch_, tile) > 0 ? 1 : 0;
    } else {
      loaded.fact = p_.rows[base + tile];
    }
  }

  __device__ void put(const Loaded& loaded, float* first, float* second, float4* facts) const {
#pragma unroll
    for (int i = 0; i < Loaded::kSteps; ++i) {
      const int at = i * Config::kThreads + thread_;
      const int to = at / Loaded::kParts * Config::kPitch + at % Loaded::kParts * 4;
      *reinterpret_cast<float4*>(first + to) = rounded(loaded.first[i]);
      *reinterpret_cast<float4*>(second + to) = rounded(loaded.second[i]);
    }
    if (thread_ < Config::kColumns) facts[thread_] = loaded.fact;
  }

  __device__ static float4 rounded(const float4& x) {
    return make_float4(ptx::round_tf32(x.x), ptx::round_tf32(x.y), ptx::round_tf32(x.z),
                       ptx::round_tf32(x.w));
  }

  /// This warp's own rows times the other side's.
  __device__ void multiply(Pairs& pairs, const float* own, const float* other) const {
    own += (warp_ * 16 + g_) * Config::kPitch + t_;
    other += g_ * Config::kPitch + t_;
#pragma unroll 4
    for (int k = 0; k < kD; k += 8) {
      const float a[4] = {own[k], own[8 * Config::kPitch + k], own[k + 4],
                          own[8 * Config::kPitch + k + 4]};
#pragma unroll
      for (int n = 0; n < Config::kColumns / 8; ++n) {
        const float b[2] = {other[8 * n * Config::kPitch + k],
                            other[8 * n * Config::kPitch + k + 4]};
        ptx::mma_m16n8k8(pairs[n], a, b);
      }
    }
  }

  /// Scores to weights and gradients of weights to those of scores.
  __device__ void weigh(Pairs& weights, Pairs& d_scores) const {
#pragma unroll
    for (int n = 0; n < Config::kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 own = shared_.own_facts[warp_ * 16 + g_ + i / 2 * 8];
        const float4 other = shared_.other_facts[n * 8 + 2 * t_ + i % 2];
        const float4 query = kByKey ? other : own;
        const float weight = expf(fmaf(weights[n][i], p_.scale, -query.x)) * query.y;
        const float d_score = weight * (d_scores[n][i] - query.z);
        const bool gives = own.y != 0 && other.y != 0;
        weights[n][i] = gives ? ptx::round_tf32(weight) : 0;
        d_scores[n][i] = gives ? ptx::round_tf32(d_score) : 0;
      }
    }
  }

  /// Adds pairs times the other side's rows. In which order a product counts its columns is free:
  /// with 2t as the one it calls t, and 2t + 1 as t + 4, pairs lie where it wants them.
  __device__ void accumulate(Sums& sums, const Pairs& pairs, const float* rows) const {
    rows += 2 * t_ * Config::kPitch + g_;
#pragma unroll
    for (int n = 0; n < Config::kColumns / 8; ++n) {
      const float a[4] = {pairs[n][0], pairs[n][2], pairs[n][1], pairs[n][3]};
#pragma unroll
      for (int block = 0; block < kD / 8; ++block) {
        const float* column = rows + 8 * n * Config::kPitch + 8 * block;
        const float b[2] = {column[0], column[Config::kPitch]};
        ptx::mma_m16n8k8(sums[block], a, b);
      }
    }
  }

  /// What each valid token of the own tiles receives.
  __device__ void store(const Sums& sums, float* gradients, float factor) const {
    const Side& side = kByKey ? p_.key : p_.query;
    const int heads = kByKey ? p_.heads / p_.group : p_.heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_ * 16 + g_ + 8 * half;
      const int tile = first_ + row;
      if (tile >= side.tiles) continue;
      const int count = side.valid_tokens(batch_, tile);
      const bool gives = count > 0 && shared_.own_facts[row].y != 0;
      const float share = gives ? factor / static_cast<float>(count) : 0;
      float* to = gradients + ((std::int64_t{batch_} * heads + head_) * side.tiles + tile) * kD;
#pragma unroll
      for (int block = 0; block < kD / 8; ++block) {
        const float* two = sums[block] + 2 * half;
        *reinterpret_cast<float2*>(to + block * 8 + 2 * t_) =
            gives ? make_float2(two[0] * share, two[1] * share) : make_float2(0, 0);
      }
    }
  }

  const CoarseParameters& p_;
  typename Config::Shared& shared_;
  int batch_;
  int head_;
  int first_;
  int thread_ = static_cast<int>(threadIdx.x);
  int warp_ = thread_ / 32;
  int g_ = thread_ % 32 / 4;
  int t_ = thread_ % 4;
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
    allow_shared(coarse_backward_kernel<Config>, sizeof(typename Config::Shared),
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
    if (grid.x == 0 || grid.y == 0) return;
    coarse_backward_kernel<Config>
        <<<grid, Config::kThreads, sizeof(typename Config::Shared), stream>>>(p);
    check(cudaGetLastError(), "coarse backward");
  });
}

}  // namespace vidsparse::cuda
