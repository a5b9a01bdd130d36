#include "support/random_problem.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::testing {
namespace {

using reference::Side;
using reference::store;
using Shape = std::array<std::int64_t, 4>;

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}

  /// In [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  double uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  bool chance(double probability) { return uniform(0, 1) < probability; }
  float normal() { return normal_(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<std::int64_t>(values.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

TileShape random_tile(Dice& dice) {
  if (dice.chance(0.4)) return {4, 4, 4};
  return dice.one_of<TileShape>({{1, 8, 8},
                                 {2, 4, 8},
                                 {2, 8, 4},
                                 {1, 1, 64},
                                 {4, 4, 8},
                                 {4, 4, 12},
                                 {3, 8, 8},
                                 {4, 8, 8},
                                 {5, 8, 8},
                                 {6, 8, 8}});
}

Video random_video(Dice& dice, const TileShape& tile, std::int64_t most) {
  Video video{dice.between(1, 2 * tile.t + 1), dice.between(1, 3 * tile.h),
              dice.between(1, 3 * tile.w)};
  while (video.t * video.h * video.w > most) {
    std::int64_t& side = video.t >= video.h && video.t >= video.w ? video.t
                         : video.h >= video.w                     ? video.h
                                                                  : video.w;
    side = (side + 1) / 2;
  }
  return video;
}

/// Video, text before and after, sometimes packed, sometimes text alone.
Sequence random_sequence(Dice& dice, const TileShape& tile, std::int64_t most) {
  if (dice.chance(0.25)) {
    return Packed{dice.between(1, std::max<std::int64_t>(1, most / tile.tokens())), tile.tokens()};
  }
  const std::int64_t text = std::max<std::int64_t>(1, std::min<std::int64_t>(150, most / 4));
  std::vector<Segment> segments;
  if (dice.chance(0.35)) segments.push_back(Plain{dice.between(0, text)});
  if (dice.chance(0.1)) segments.push_back(Plain{dice.between(0, text)});
  if (!dice.chance(0.03)) segments.push_back(random_video(dice, tile, most));
  if (dice.chance(0.25)) segments.push_back(Plain{dice.between(0, text)});
  if (dice.chance(0.1)) segments.push_back(random_video(dice, tile, most / 2 + 1));
  return Sequence(segments);
}

/// Run-time lengths of one side: [B, columns] or [columns]; values out of range included.
TensorView random_lengths(Dice& dice, const TileLayout& layout, std::int64_t batch,
                          std::vector<std::int32_t>& storage) {
  const std::int64_t columns = layout.length_columns();
  const bool packed = layout.sequence().is_packed();
  if (columns == 0 || !dice.chance(packed ? 0.9 : 0.6)) return {};
  const bool shared = dice.chance(0.3);
  storage.resize(static_cast<std::size_t>(columns * (shared ? 1 : batch)));
  for (std::int32_t& length : storage) {
    const std::int64_t most = packed ? layout.tile_shape().tokens() : 150;
    length = static_cast<std::int32_t>(dice.between(-5, most + 5));
    if (dice.chance(0.2)) length = 0;
    if (dice.chance(0.2)) length = static_cast<std::int32_t>(most);
  }
  if (shared) return TensorView::dense(storage.data(), DType::i32, 1, {columns});
  return TensorView::dense(storage.data(), DType::i32, 2, {batch, columns});
}

/// Normal numbers with a mean of their own for every few tokens, so that tiles differ.
void fill(Dice& dice, const TensorRef& tensor, float sigma, float spread) {
  const Shape& shape = tensor.shape;
  std::vector<float> mean(static_cast<std::size_t>(shape[3]));
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    for (std::int64_t h = 0; h < shape[2]; ++h) {
      for (std::int64_t s = 0; s < shape[1]; ++s) {
        if (s % 40 == 0) {
          for (float& value : mean) value = spread * dice.normal();
        }
        const std::int64_t offset = tensor.offset(b, s, h);
        for (std::int64_t d = 0; d < shape[3]; ++d) {
          store(tensor, offset + d, mean[static_cast<std::size_t>(d)] + sigma * dice.normal());
        }
      }
    }
  }
}

/// Pad slots and tokens beyond a run-time length: whatever can do harm.
void spoil_pads(Dice& dice, const TensorRef& tensor, const Side& side) {
  std::vector<bool> valid;
  for (std::int64_t b = 0; b < tensor.shape[0]; ++b) {
    valid.assign(static_cast<std::size_t>(tensor.shape[1]), false);
    for (std::int64_t tile = 0; tile < side.tiles(); ++tile) {
      side.for_each_token(
          b, tile, [&](std::int64_t token) { valid[static_cast<std::size_t>(token)] = true; });
    }
    for (std::int64_t s = 0; s < tensor.shape[1]; ++s) {
      if (valid[static_cast<std::size_t>(s)]) continue;
      const double infinity = std::numeric_limits<double>::infinity();
      const double harm = dice.one_of<double>({std::nan(""), infinity, -infinity, 3e4});
      for (std::int64_t h = 0; h < tensor.shape[2]; ++h) {
        const std::int64_t offset = tensor.offset(b, s, h);
        for (std::int64_t d = 0; d < tensor.shape[3]; ++d) store(tensor, offset + d, harm);
      }
    }
  }
}

Order random_gaps(const Limits& limits) { return limits.gpu ? Order::wide : Order::padded; }

PoisonedTensor random_tensor(Dice& dice, DType dtype, const Shape& shape, const Limits& limits) {
  const Order order = dice.one_of({Order::bshd, Order::bshd, Order::bhsd, random_gaps(limits)});
  const std::int64_t first = dice.chance(0.2) ? dice.between(1, 9) : 0;
  return PoisonedTensor(dtype, 4, shape, strides_of(order, shape), limits.gpu ? first * 8 : first);
}

Selection random_selection(Dice& dice, const TileLayout& key) {
  Selection selection;
  const std::int64_t tiles = key.video_tiles();
  if (tiles > 0 && dice.chance(0.2)) {
    selection.top_k = 1;
  } else if (tiles > 0 && dice.chance(0.15)) {
    selection.top_k = tiles;
  } else if (tiles > 0 && dice.chance(0.3)) {
    selection.top_k = dice.between(1, tiles);
  } else {
    selection.sparsity =
        dice.chance(0.5) ? dice.one_of({0.0, 0.5, 0.7, 0.8, 0.9, 0.97}) : dice.uniform(0, 0.999);
  }
  if (dice.chance(0.4)) selection.prefix_mode = PrefixMode::compete;
  return selection;
}

/// Bits at random, some rows empty, some full. One batch entry or head may stand for all.
TileMask random_mask(Dice& dice, const MaskShape& full, double density) {
  MaskShape shape = full;
  if (dice.chance(0.3)) shape.batch = 1;
  if (dice.chance(0.3)) shape.heads = 1;
  TileMask mask(shape);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t i = 0; i < shape.query_tiles; ++i) {
        const double odds = dice.chance(0.15) ? 0 : dice.chance(0.1) ? 1 : density;
        for (std::int64_t j = 0; j < shape.key_tiles; ++j) {
          if (dice.chance(odds)) mask.set(b, h, i, j);
        }
      }
    }
  }
  return mask;
}

/// Everything known before the tensors, of bounded cost for the reference.
Problem random_frame(Dice& dice, double& density, const Limits& limits) {
  Problem problem;
  problem.tile = random_tile(dice);
  problem.dtype = limits.gpu ? dice.one_of({DType::bf16, DType::f16})
                             : dice.one_of({DType::f32, DType::bf16, DType::bf16, DType::f16});
  problem.head_dim = limits.gpu || dice.chance(0.6)
                         ? dice.one_of<std::int64_t>({64, 128})
                         : dice.one_of<std::int64_t>({96, 112, 192, 256});
  problem.batch = limits.no_batch ? 0 : dice.chance(0.65) ? 1 : dice.between(2, 3);
  const std::int64_t key_heads = dice.between(1, 2);
  const std::int64_t group = dice.chance(0.65) ? 1 : dice.between(2, 3);
  problem.heads_q = key_heads * group;
  problem.heads_kv = group == 1 && dice.chance(0.5) ? 0 : key_heads;
  density = dice.chance(0.3) ? 0.1 : dice.uniform(0.1, 1);
  const bool own_keys = dice.chance(0.4);
  const double limit = (dice.chance(0.05) ? 3e7 : 6e6) * (problem.tile.tokens() >= 192 ? 2 : 1);
  for (double most = 1500;; most *= 0.8) {
    const auto tokens = static_cast<std::int64_t>(dice.uniform(0.5, 1) * most) + 1;
    problem.query = random_sequence(dice, problem.tile, tokens);
    problem.key.reset();
    if (own_keys) problem.key = random_sequence(dice, problem.tile, tokens);
    const TileLayout query(problem.query, problem.tile);
    const TileLayout key(problem.key_sequence(), problem.tile);
    const double work = static_cast<double>(problem.batch * problem.heads_q * problem.head_dim) *
                        static_cast<double>(query.tokens()) * static_cast<double>(key.tokens());
    if (work <= limit || most < 64) return problem;
  }
}

std::uint64_t number_from(const char* variable, std::uint64_t unless_set) {
  const char* text = std::getenv(variable);
  return text == nullptr || *text == '\0' ? unless_set : std::strtoull(text, nullptr, 10);
}

/// Makes one key's score -inf for each query of its heads: its weight is 0, and so is its gradient
/// of v, whatever the fragments that meet it look like.
void add_ignored_key(RandomProblem& problem, Dice& dice) {
  const TensorRef& q = problem.q.ref;
  const TensorRef& k = problem.k.ref;
  if (q.elements() == 0 || k.elements() == 0) return;
  const std::int64_t batch = dice.between(0, k.shape[0] - 1);
  const std::int64_t head = dice.between(0, k.shape[2] - 1);
  const std::int64_t column = dice.between(0, k.shape[3] - 1);
  const std::int64_t group = q.shape[2] / k.shape[2];
  for (std::int64_t token = 0; token < q.shape[1]; ++token) {
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
      store(q, q.offset(batch, token, h) + column, dice.uniform(0.5, 1.5));
    }
  }
  store(k, k.offset(batch, dice.between(0, k.shape[1] - 1), head) + column,
        -std::numeric_limits<double>::infinity());
}

}  // namespace

RandomProblem::RandomProblem(const Problem& frame)
    : setting{frame, TileLayout(frame.query, frame.tile),
              TileLayout(frame.key_sequence(), frame.tile), Device{}, ParallelFor{}} {}

Shape RandomProblem::query_shape() const {
  return {problem().batch, setting.query.tokens(), problem().heads_q, problem().head_dim};
}
Shape RandomProblem::key_shape() const {
  return {problem().batch, setting.key.tokens(), problem().key_heads(), problem().head_dim};
}
Shape RandomProblem::query_tile_shape() const {
  return {problem().batch, problem().heads_q, setting.query.tiles(), problem().head_dim};
}
Shape RandomProblem::key_tile_shape() const {
  return {problem().batch, problem().key_heads(), setting.key.tiles(), problem().head_dim};
}
MaskShape RandomProblem::mask_shape() const {
  return {problem().batch, problem().heads_q, setting.query.tiles(), setting.key.tiles()};
}

std::string RandomProblem::to_string() const {
  const auto number = [](double value) { return std::to_string(value); };
  const TileShape& tile = problem().tile;
  std::string text = "VIDSPARSE_TEST_SEED=" + std::to_string(seed) + ": ";
  text += use == Use::whole ? "whole" : use == Use::block_sparse ? "block-sparse" : "pooled";
  text += ", " + std::string(name_of(problem().dtype)) + ", query " + problem().query.to_string();
  if (problem().key) text += ", key " + problem().key->to_string();
  text += ", tile " + std::to_string(tile.t) + "x" + std::to_string(tile.h) + "x" +
          std::to_string(tile.w) + ", B " + std::to_string(problem().batch) + ", H " +
          std::to_string(problem().heads_q) + ", G " + std::to_string(problem().key_heads()) +
          ", D " + std::to_string(problem().head_dim);
  if (selection.top_k) text += ", k " + std::to_string(*selection.top_k);
  if (selection.sparsity) text += ", sparsity " + number(*selection.sparsity);
  text += selection.prefix_mode == PrefixMode::compete ? ", compete" : ", exempt";
  if (selection.always) text += ", always";
  if (scale) text += ", scale " + number(*scale);
  if (gate.is_scalar()) text += ", gate " + number(gate.value());
  if (gate.is_tensor()) text += ", gate tensor";
  if (lengths.query || lengths.key) text += ", lengths";
  if (with_dlse) text += ", dlse";
  return text;
}

std::unique_ptr<RandomProblem> random_problem(std::uint64_t seed, const Limits& limits) {
  Dice dice(seed);
  double density = 0.5;
  auto random = std::make_unique<RandomProblem>(
      limits.problem ? *limits.problem : random_frame(dice, density, limits));
  RandomProblem& r = *random;
  const Problem& problem = r.problem();
  r.seed = seed;
  r.use = dice.chance(0.65) ? Use::whole : dice.chance(0.7) ? Use::block_sparse : Use::pooled;

  r.lengths.query = random_lengths(dice, r.setting.query, problem.batch, r.query_lengths);
  if (problem.key) {
    r.lengths.key = random_lengths(dice, r.setting.key, problem.batch, r.key_lengths);
  } else {
    r.lengths.key = r.lengths.query;
  }

  // q, k, v: apart, or views of one fused buffer where they have the same shape.
  const bool same_shape = r.query_shape() == r.key_shape();
  const Shape shape = r.query_shape();
  if (same_shape && dice.chance(0.3)) {
    const std::int64_t token = 3 * shape[2] * shape[3];
    const Shape strides = {shape[1] * token, token, shape[3], 1};
    const std::int64_t part = shape[2] * shape[3];
    r.q.memory =
        Poisoned(static_cast<std::size_t>(shape[0] * shape[1] * token) * size_of(problem.dtype));
    r.q.ref = r.q.memory.give(problem.dtype, 4, shape, strides);
    r.k.ref = r.q.memory.give(problem.dtype, 4, shape, strides, part);
    r.v.ref = r.q.memory.give(problem.dtype, 4, shape, strides, 2 * part);
  } else {
    r.q = random_tensor(dice, problem.dtype, shape, limits);
    r.k = random_tensor(dice, problem.dtype, r.key_shape(), limits);
    r.v = random_tensor(dice, problem.dtype, r.key_shape(), limits);
  }
  r.fused_gradients = same_shape && dice.chance(0.3);
  r.out_order = dice.one_of({Order::bshd, Order::bhsd, random_gaps(limits)});

  const Side query(r.setting.query, r.lengths.query);
  const Side key(r.setting.key, r.lengths.key);
  fill(dice, r.q.ref, dice.one_of({0.5F, 1.0F, 2.0F}), 0.5F);
  fill(dice, r.k.ref, 1.0F, 0.5F);
  fill(dice, r.v.ref, 1.0F, 0.5F);
  spoil_pads(dice, r.q.ref, query);
  spoil_pads(dice, r.k.ref, key);
  spoil_pads(dice, r.v.ref, key);
  r.dout = random_tensor(dice, problem.dtype, shape, limits);
  fill(dice, r.dout.ref, 1.0F, 0.2F);
  spoil_pads(dice, r.dout.ref, query);

  if (dice.chance(0.3)) r.scale = dice.uniform(0.02, 0.25);
  if (dice.chance(0.02)) r.scale = -0.1;
  if (dice.chance(0.45)) {
    r.gate_tensor = random_tensor(dice, problem.dtype, shape, limits);
    fill(dice, r.gate_tensor.ref, 0.7F, 0.3F);
    spoil_pads(dice, r.gate_tensor.ref, query);
    r.gate = Gate(r.gate_tensor.ref);
  } else if (dice.chance(0.35)) {
    r.gate = Gate(dice.one_of({1.0F, 0.5F, -0.75F, 0.0F}));
  }

  // Not with a gate: both branches would average the same tokens, and their errors would add up.
  if (r.gate.is_none() && dice.chance(0.03)) r.scale = 0.0;
  r.with_dlse = dice.chance(0.4);
  const DType accumulator = accumulator_of(problem.dtype);
  if (r.with_dlse) {
    // As [B, Sq, H, 1] for filling, as [B, H, Sq] for the call: both are the same memory.
    r.dlse = PoisonedTensor(accumulator, 3, {shape[0], shape[2], shape[1]});
    const TensorRef tokens(r.dlse.ref.data, accumulator, 4, {shape[0], shape[1], shape[2], 1},
                           {shape[2] * shape[1], 1, shape[1], 1});
    fill(dice, tokens, 1.0F, 0.0F);
    spoil_pads(dice, tokens, query);
  }

  r.selection = random_selection(dice, r.setting.key);
  if (dice.chance(0.25) && r.mask_shape().words() > 0) {
    r.always = random_mask(dice, r.mask_shape(), 0.1);
    r.selection.always = r.always.view().broadcast(problem.batch, problem.heads_q);
  }

  if (r.use == Use::block_sparse) {
    r.caller_mask = random_mask(dice, r.mask_shape(), density);
    r.mask_view = r.caller_mask.view().broadcast(problem.batch, problem.heads_q);
    if (!r.gate.is_none()) {
      r.oc = PoisonedTensor(accumulator, 4, r.query_tile_shape());
      fill(dice, r.oc.ref, 1.0F, 0.5F);
    }
  }
  if (r.use == Use::pooled) {
    r.qc = PoisonedTensor(accumulator, 4, r.query_tile_shape());
    r.kc = PoisonedTensor(accumulator, 4, r.key_tile_shape());
    r.vc = PoisonedTensor(accumulator, 4, r.key_tile_shape());
    for (const TensorRef* tensor : {&r.qc.ref, &r.kc.ref, &r.vc.ref}) {
      fill(dice, *tensor, 1.0F, 0.0F);
    }
  }
  return random;
}

void add_non_finite(RandomProblem& problem, std::uint64_t seed) {
  Dice dice(seed);
  // 0 * inf: a backend may drop what a scale of 0 makes meaningless.
  if (problem.scale == 0.0) problem.scale.reset();
  // A weight that fp16 rounds to 0 makes NaN of what is infinite exactly.
  if (problem.problem().dtype == DType::f16) problem.scale = dice.uniform(0.01, 0.05);
  const double infinity = std::numeric_limits<double>::infinity();
  const auto spoil = [&](const TensorRef& tensor) {
    if (!tensor || tensor.elements() == 0) return;
    for (std::int64_t n = dice.between(1, 3); n > 0; --n) {
      const std::int64_t offset =
          tensor.offset(dice.between(0, tensor.shape[0] - 1), dice.between(0, tensor.shape[1] - 1),
                        dice.between(0, tensor.shape[2] - 1));
      store(tensor, offset + dice.between(0, tensor.shape[3] - 1),
            dice.one_of({std::nan(""), infinity, -infinity}));
    }
  };
  if (dice.chance(0.5)) spoil(problem.q.ref);
  if (dice.chance(0.5)) spoil(problem.k.ref);
  if (dice.chance(0.5)) spoil(problem.v.ref);
  if (dice.chance(0.3)) spoil(problem.gate_tensor.ref);
  if (dice.chance(0.3)) spoil(problem.dout.ref);
  if (dice.chance(0.3)) add_ignored_key(problem, dice);
}

void add_weightless_row(RandomProblem& problem, std::uint64_t seed) {
  const TensorRef& q = problem.q.ref;
  const TensorRef& k = problem.k.ref;
  if (q.elements() == 0 || k.elements() == 0) return;
  Dice dice(seed);
  if (problem.scale && *problem.scale <= 0) problem.scale.reset();
  const std::int64_t batch = dice.between(0, q.shape[0] - 1);
  const std::int64_t token = dice.between(0, q.shape[1] - 1);
  const std::int64_t head = dice.between(0, q.shape[2] - 1);
  const std::int64_t column = dice.between(0, q.shape[3] - 1);
  const std::int64_t key_head = head / (q.shape[2] / k.shape[2]);
  for (std::int64_t j = 0; j < k.shape[1]; ++j) {
    store(k, k.offset(batch, j, key_head) + column, dice.uniform(-1.5, -0.5));
  }
  store(q, q.offset(batch, token, head) + column, std::numeric_limits<double>::infinity());
  const TensorRef& dout = problem.dout.ref;
  if (!dout) return;
  store(dout, dout.offset(batch, token, head) + dice.between(0, dout.shape[3] - 1), std::nan(""));
}

std::uint64_t test_seed() {
  std::random_device device;
  const std::uint64_t fresh = (static_cast<std::uint64_t>(device()) << 32) | device();
  return number_from("VIDSPARSE_TEST_SEED", fresh);
}

std::int64_t test_problems(std::int64_t unless_set) {
  return static_cast<std::int64_t>(
      number_from("VIDSPARSE_TEST_PROBLEMS", static_cast<std::uint64_t>(unless_set)));
}

}  // namespace vidsparse::testing
