#pragma once

#include <vector>

#include "reference/answers.hpp"

namespace vidsparse::reference {

enum class Pass { forward, forward_and_backward };

/// The op in plain arithmetic, one or more times. Plain leaves open in which order fp32 sums run,
/// and on few rows of fp32 input the error of one order is a matter of luck; so small fp32 problems
/// are answered in several random orders of head_dim, and the yardstick is the worst of them.
std::vector<Answers> plain_answers(const core::Setting& setting, const OpInputs& inputs, Pass pass);

}  // namespace vidsparse::reference
