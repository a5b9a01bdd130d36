#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend.hpp"
#include "support/poisoned.hpp"

namespace vidsparse::testing {

/// What a backend can run; problems are drawn from within.
struct Limits {
  /// bf16 and fp16, head_dim 64 and 128, rows at multiples of 16 bytes, batch and head strides at
  /// multiples of 64 elements.
  bool gpu = false;
  /// Batches of no entries.
  bool no_batch = false;
  /// This problem instead of a random one; its inputs and arguments are random still.
  std::optional<Problem> problem = std::nullopt;
};

/// What a problem is for.
enum class Use {
  whole,         ///< pool, forward, backward
  block_sparse,  ///< attend and backward over the caller's mask
  pooled,        ///< select on the caller's pooled tensors, then attend over the selection
};

/// A fresh random problem with its inputs. Pad slots hold NaN, infinities and large numbers.
struct RandomProblem {
  std::uint64_t seed = 0;
  Use use = Use::whole;
  core::Setting setting;

  PoisonedTensor q, k, v;  ///< `k` and `v` may be views of q's memory (fused qkv)
  PoisonedTensor gate_tensor, dout, dlse;
  std::vector<std::int32_t> query_lengths, key_lengths;
  Lengths lengths;
  std::optional<double> scale;
  Gate gate;
  Selection selection;
  TileMask always;
  TileMask caller_mask;       ///< Use::block_sparse
  TileMaskView mask_view;     ///< of it, as [B, H, Nq, Nk]
  PoisonedTensor qc, kc, vc;  ///< Use::pooled: the caller's
  PoisonedTensor oc;          ///< Use::block_sparse with a gate: the caller's

  bool with_dlse = false;
  Order out_order = Order::bshd;
  bool fused_gradients = false;  ///< dq, dk, dv are views of one buffer

  explicit RandomProblem(const Problem& problem);

  const Problem& problem() const { return setting.problem; }
  /// [B, Sq, H, D], [B, Sk, G, D].
  std::array<std::int64_t, 4> query_shape() const;
  std::array<std::int64_t, 4> key_shape() const;
  /// [B, H, Nq, D], [B, G, Nk, D].
  std::array<std::int64_t, 4> query_tile_shape() const;
  std::array<std::int64_t, 4> key_tile_shape() const;
  MaskShape mask_shape() const;

  /// One line: the seed and what was drawn.
  std::string to_string() const;
};

/// The same seed gives the same problem.
std::unique_ptr<RandomProblem> random_problem(std::uint64_t seed, const Limits& limits = {});

/// Puts NaN and infinities into a few valid elements of the inputs.
void add_non_finite(RandomProblem& problem, std::uint64_t seed);

/// Makes every score of one query -inf, and puts a NaN in its dout: no gradient comes of it.
void add_weightless_row(RandomProblem& problem, std::uint64_t seed);

/// The seed a test starts from, fresh unless VIDSPARSE_TEST_SEED is set; and how many problems it
/// runs, from VIDSPARSE_TEST_PROBLEMS.
std::uint64_t test_seed();
std::int64_t test_problems(std::int64_t unless_set);

}  // namespace vidsparse::testing
