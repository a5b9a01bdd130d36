#include "cuda/common/limits.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

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

}  // namespace vidsparse::cuda
