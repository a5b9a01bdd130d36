#include "reference/plain_answers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "reference/rows.hpp"

namespace vidsparse::reference {
namespace {

using Order = std::vector<std::int64_t>;

/// 1 but for fp32, and there the fewer the more rows there are to average luck out; at least one
/// for each way lse may be off.
std::int64_t orders_of(const core::Setting& setting) {
  if (setting.problem.dtype != DType::f32) return 1;
  const std::int64_t rows =
      setting.problem.batch * setting.problem.heads_q * setting.query.tokens();
  return std::clamp<std::int64_t>(4096 / std::max<std::int64_t>(rows, 1), 2, 8);
}

/// A copy with every finite element one fp32 ulp nearer to `limit`.
DenseTensor nudged(const TensorView& tensor, float limit) {
  DenseTensor copy(tensor.dtype, tensor.rank, tensor.shape);
  const TensorRef target = copy.ref();
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    const float value = load<float>(tensor, i);
    store(target, i, std::isfinite(value) ? std::nextafter(value, limit) : value);
  }
  return copy;
}

/// Calls move(from, to) with the offsets of every element and of its place in the other order.
template <class Move>
void for_each_pair(const TensorView& from, const TensorView& to, Move&& move) {
  for (std::int64_t i = 0; i < from.shape[0]; ++i) {
    for (std::int64_t j = 0; j < from.shape[1]; ++j) {
      for (std::int64_t k = 0; k < from.shape[2]; ++k) {
        move(from.offset(i, j, k), to.offset(i, j, k));
      }
    }
  }
}

/// A dense copy with element d of every row taken from order[d]. Absent tensors stay absent.
DenseTensor reordered(const TensorView& tensor, const Order& order) {
  if (!tensor) return {};
  DenseTensor copy(tensor.dtype, 4, tensor.shape);
  const TensorRef target = copy.ref();
  for_each_pair(tensor, target, [&](std::int64_t from, std::int64_t to) {
    for (std::size_t d = 0; d < order.size(); ++d) {
      store(target, to + static_cast<std::int64_t>(d), load<double>(tensor, from + order[d]));
    }
  });
  return copy;
}

void restore(DenseTensor& tensor, const Order& inverse) {
  if (tensor.view()) tensor = reordered(tensor.view(), inverse);
}

/// `limit`: which way the backward's lse is off, in fp32.
Answers answer(const core::Setting& setting, const OpInputs& inputs, Pass pass, float limit,
               bool fused = false) {
  const PlainArithmetic plainly{setting.problem.dtype, fused};
  Answers answers = answer_forward(setting, plainly, inputs);
  if (pass == Pass::forward) return answers;
  DenseTensor lse = answers.lse;
  if (setting.problem.dtype == DType::f32) answers.lse = nudged(lse.view(), limit);
  answer_backward(setting, plainly, inputs, answers);
  answers.lse = std::move(lse);
  return answers;
}

Answers answer_in(const core::Setting& setting, const OpInputs& inputs, Pass pass,
                  const Order& order, float limit) {
  const DenseTensor q = reordered(inputs.q, order);
  const DenseTensor k = reordered(inputs.k, order);
  const DenseTensor v = reordered(inputs.v, order);
  const DenseTensor oc = reordered(inputs.oc, order);
  const DenseTensor dout = reordered(inputs.dout, order);
  const DenseTensor gate =
      reordered(inputs.gate.is_tensor() ? inputs.gate.tensor() : TensorView(), order);
  OpInputs shuffled = inputs;
  shuffled.q = q.view();
  shuffled.k = k.view();
  shuffled.v = v.view();
  shuffled.oc = oc.view();
  shuffled.dout = dout.view();
  if (inputs.gate.is_tensor()) shuffled.gate = Gate(gate.view());
  Answers answers = answer(setting, shuffled, pass, limit);

  Order inverse(order.size());
  for (std::size_t d = 0; d < order.size(); ++d) {
    inverse[static_cast<std::size_t>(order[d])] = static_cast<std::int64_t>(d);
  }
  for (DenseTensor* tensor : {&answers.qc, &answers.kc, &answers.vc, &answers.oc, &answers.out,
                              &answers.dq, &answers.dk, &answers.dv, &answers.dgate}) {
    restore(*tensor, inverse);
  }
  return answers;
}

}  // namespace

std::vector<Answers> plain_answers(const core::Setting& setting, const OpInputs& inputs,
                                   Pass pass) {
  std::vector<Answers> all;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  all.push_back(answer(setting, inputs, pass, kInfinity));
  if (setting.problem.dtype == DType::f32) {
    all.push_back(answer(setting, inputs, pass, -kInfinity, true));
  }
  Order order(static_cast<std::size_t>(setting.problem.head_dim));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 shuffler;  // the same orders every time: a verdict must be repeatable
  for (std::int64_t n = 1; n < orders_of(setting); ++n) {
    std::shuffle(order.begin(), order.end(), shuffler);
    all.push_back(answer_in(setting, inputs, pass, order, n % 2 == 0 ? kInfinity : -kInfinity));
  }
  return all;
}

}  // namespace vidsparse::reference
