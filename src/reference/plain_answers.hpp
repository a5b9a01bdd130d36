#pragma once

#include <vector>

#include "reference/answers.hpp"

namespace vidsparse::reference {

enum class Pass { forward, forward_and_backward };

/// The op in plain arithmetic, one or more times. Plain leaves open in which order fp32 sums run,
/// and on few rows of fp32 input the error of one order is a matter of luck; so small fp32 problems
/// are answered in several random orders of head_dim, and the yardstick is the worst of them. Half
/// of their backwards are given an lse one ulp too high, the others one too low: its rounding is
/// shared by all weights of a row (at a scale of 0 by all rows), and how lucky plain's own is says
/// nothing of another's.
std::vector<Answers> plain_answers(const core::Setting& setting, const OpInputs& inputs, Pass pass);

}  // namespace vidsparse::reference
