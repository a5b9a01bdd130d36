// Video sparse attention over random tokens of a small grid, with half of the key tiles kept.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include <vidsparse/vidsparse.hpp>

namespace {

std::vector<float> random_values(std::int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

int run() {
  vidsparse::Problem problem;
  problem.query = vidsparse::Sequence::grid({4, 10, 13});  // ragged in h and w
  problem.heads_q = 2;
  problem.head_dim = 64;
  problem.dtype = vidsparse::DType::f32;
  const vidsparse::Plan plan(problem);

  const std::int64_t tokens = plan.query_layout().tokens();
  const std::array<std::int64_t, 4> sides = {1, tokens, problem.heads_q, problem.head_dim};
  const auto tensor = [&](std::vector<float>& values) {
    return vidsparse::TensorRef::dense(values.data(), problem.dtype, 4, sides);
  };
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  const std::int64_t count = tokens * problem.heads_q * problem.head_dim;
  std::vector<float> q = random_values(count, random);
  std::vector<float> k = random_values(count, random);
  std::vector<float> v = random_values(count, random);
  std::vector<float> out(q.size(), std::nanf(""));
  std::vector<std::uint64_t> words(static_cast<std::size_t>(plan.mask_shape().words()));

  vidsparse::ForwardArgs args;
  args.q = tensor(q);
  args.k = tensor(k);
  args.v = tensor(v);
  args.out = tensor(out);
  args.selection.sparsity = 0.5;
  args.mask = {words.data(), plan.mask_shape()};

  // The workspace is the caller's: 64-byte aligned, reused by every call of the same size.
  std::size_t bytes = plan.workspace_bytes(args) + 64;
  std::vector<std::byte> memory(bytes);
  void* data = memory.data();
  std::align(64, bytes - 64, data, bytes);
  plan.forward(args, {data, bytes});

  // Outputs are averages of values: finite and no larger than the largest of them.
  float largest = 0;
  for (const float value : v) largest = std::max(largest, std::abs(value));
  for (const float value : out) {
    if (!(std::abs(value) <= largest * 1.0001F)) {
      std::fprintf(stderr, "seed %u: out has %g, no value exceeds %g\n", seed,
                   static_cast<double>(value), static_cast<double>(largest));
      return 1;
    }
  }
  const std::int64_t top_k = plan.resolve_top_k(args.selection);
  for (std::int64_t row = 0; row < plan.mask_shape().query_tiles; ++row) {
    std::int64_t kept = 0;
    for (std::int64_t tile = 0; tile < plan.mask_shape().key_tiles; ++tile) {
      kept += args.mask.test(0, 0, row, tile) ? 1 : 0;
    }
    if (kept != top_k) {
      std::fprintf(stderr, "seed %u: query tile %lld keeps %lld key tiles, expected %lld\n", seed,
                   static_cast<long long>(row), static_cast<long long>(kept),
                   static_cast<long long>(top_k));
      return 1;
    }
  }
  std::printf("vidsparse %s, backend %s: %lld tokens, %lld of %lld key tiles kept\n",
              vidsparse::version(), plan.backend().c_str(), static_cast<long long>(tokens),
              static_cast<long long>(top_k), static_cast<long long>(plan.mask_shape().key_tiles));
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const vidsparse::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
