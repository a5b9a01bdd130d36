#pragma once

#include <vector>

#include "reference/judge.hpp"
#include "reference/plain_answers.hpp"

namespace vidsparse::reference {

/// Judges a result by the same member of exact and plain answers.
Report judge_answer(const std::string& name, const TensorView& actual, const Answers& exact,
                    const std::vector<Answers>& plain, DenseTensor Answers::*member);

/// Judges a forward that has run: `args` as Plan::forward took them, with their outputs filled.
/// `args.mask` is required; lse, oc and the coarse rows are judged where they were asked for. One
/// report per thing judged, the selection first.
std::vector<Report> check_forward(const core::Setting& setting, const ForwardArgs& args);

/// The same for the command. Slow on large problems: the reference runs on all of it, with the
/// threads of `parallel`.
std::vector<Report> check_forward(const Plan& plan, const ForwardArgs& args,
                                  const ParallelFor& parallel);

/// Judges a backward that has run from a forward on the same inputs.
std::vector<Report> check_backward(const core::Setting& setting, const BackwardArgs& args);

}  // namespace vidsparse::reference
