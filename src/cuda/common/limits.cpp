#include "cuda/common/limits.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

#include "cuda/common/fragment_table.cuh"
#include "cuda/common/side.hpp"

namespace vidsparse::cuda {

Verdict within_limits(const Problem& problem, const TileLayout& query, const TileLayout& key) {
  if (problem.dtype != DType::bf16 && problem.dtype != DType::f16) {
    return Verdict::no("dtype: expected bf16 or f16, got " + std::string(name_of(problem.dtype)));
  }
  if (problem.head_dim != 64 && problem.head_dim != 128) {
    return Verdict::no("head_dim: expected 64 or 128, got " + std::to_string(problem.head_dim));
  }
  // Kernels count blocks, heads and tiles in 31 bits.
  const std::int64_t rows = std::max(query.tiles(), key.tiles()) + 1;
  if (problem.batch * problem.heads_q > INT32_MAX / rows) {
    return Verdict::no("heads_q: expected fewer than 2^31 rows of tiles in all, got " +
                       std::to_string(problem.batch) + " x " + std::to_string(problem.heads_q) +
                       " x " + std::to_string(rows - 1));
  }
  Verdict verdict = can_describe("query", query);
  if (verdict.ok) verdict = can_describe("key", key);
  return verdict;
}

Verdict fits_fragment_table(const char* name, const TileLayout& layout) {
  for (const Segment& segment : layout.sequence().segments()) {
    const auto* video = std::get_if<Video>(&segment);
    if (video == nullptr) continue;
    if (video->t > KeyFragment::kMaxFrames || video->h > KeyFragment::kMaxHeight) {
      return Verdict::no(std::string(name) +
                         ": expected videos of at most 4096 x 65536 (T x H), got " +
                         layout.sequence().to_string());
    }
  }
  return Verdict::yes();
}

}  // namespace vidsparse::cuda
