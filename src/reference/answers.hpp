#pragma once

#include <cstddef>
#include <vector>

#include "core/backend.hpp"
#include "reference/arithmetic.hpp"

namespace vidsparse::reference {

/// A dense tensor that owns its memory.
class DenseTensor {
 public:
  DenseTensor() = default;
  DenseTensor(DType dtype, int rank, std::array<std::int64_t, 4> sides);

  TensorRef ref() { return located<void*>(storage_.data()); }
  TensorView view() const { return located<const void*>(storage_.data()); }

 private:
  template <class Pointer>
  BasicTensor<Pointer> located(Pointer data) const {
    return {data, shape_.dtype, shape_.rank, shape_.shape, shape_.strides};
  }

  TensorView shape_;
  std::vector<std::byte> storage_;
};

/// The inputs of the op, by name. Attention is judged on a given mask.
struct OpInputs {
  TensorView q, k, v;
  Lengths lengths;
  std::optional<double> scale;
  Gate gate;
  std::optional<TileMaskView> mask;  ///< absent: pooled tensors only
  TensorView oc;    ///< optional: the caller's own; else made from the pooled tensors
  TensorView dout;  ///< backward only
  TensorView dlse;  ///< backward only, optional
};

/// What the op gives in one arithmetic, nothing rounded on the way out. Absent without a gate: vc,
/// oc, the coarse rows; without a tensor gate: dgate.
struct Answers {
  DenseTensor qc, kc, vc;
  DenseTensor oc, coarse_max, coarse_sum;
  DenseTensor out, lse;
  DenseTensor dq, dk, dv, dgate;
};

/// qc and kc, with a gate vc, oc and the coarse rows; out and lse if there is a mask.
template <class Arithmetic>
Answers answer_forward(const core::Setting& setting, const Arithmetic& arithmetic,
                       const OpInputs& inputs);

/// Adds the gradients to what answer_forward gave for the same inputs.
template <class Arithmetic>
void answer_backward(const core::Setting& setting, const Arithmetic& arithmetic,
                     const OpInputs& inputs, Answers& answers);

}  // namespace vidsparse::reference
