#include "reference/check.hpp"

namespace vidsparse::reference {
namespace {

/// What both passes share, by name.
template <class Args>
OpInputs inputs_of(const Args& args) {
  OpInputs inputs;
  inputs.q = args.q;
  inputs.k = args.k;
  inputs.v = args.v;
  inputs.lengths = args.lengths;
  inputs.scale = args.scale;
  inputs.gate = args.gate;
  inputs.mask = args.mask;
  return inputs;
}

}  // namespace

Report judge_answer(const std::string& name, const TensorView& actual, const Answers& exact,
                    const std::vector<Answers>& plain, DenseTensor Answers::*member) {
  std::vector<TensorView> yardsticks;
  yardsticks.reserve(plain.size());
  for (const Answers& answers : plain) yardsticks.push_back((answers.*member).view());
  return judge_tensor(name, actual, (exact.*member).view(), yardsticks);
}

std::vector<Report> check_forward(const core::Setting& setting, const ForwardArgs& args) {
  const OpInputs inputs = inputs_of(args);
  const Answers exact = answer_forward(setting, ExactArithmetic<double>{}, inputs);
  const std::vector<Answers> plain = plain_answers(setting, inputs, Pass::forward);
  const ScoreInputs scores{exact.qc.view(), exact.kc.view(), args.lengths, args.scale};

  std::vector<Report> reports;
  reports.push_back(judge_selection(setting, scores, args.selection, args.mask));
  if (args.oc) {
    reports.push_back(judge_close("oc", args.oc, exact.oc.view(), kCoarseTolerance));
  }
  if (args.coarse_max && args.coarse_sum) {
    reports.push_back(judge_coarse_rows(setting, scores, args.coarse_max, args.coarse_sum));
  }
  if (args.lse) {
    reports.push_back(judge_answer("lse", args.lse, exact, plain, &Answers::lse));
  }
  reports.push_back(judge_answer("out", args.out, exact, plain, &Answers::out));
  return reports;
}

std::vector<Report> check_forward(const Plan& plan, const ForwardArgs& args,
                                  const ParallelFor& parallel) {
  return check_forward(core::Setting{plan.problem(), plan.query_layout(), plan.key_layout(),
                                     plan.device(), parallel},
                       args);
}

std::vector<Report> check_backward(const core::Setting& setting, const BackwardArgs& args) {
  OpInputs inputs = inputs_of(args);
  inputs.dout = args.dout;
  inputs.dlse = args.dlse;
  const ExactArithmetic<double> exactly;
  Answers exact = answer_forward(setting, exactly, inputs);
  answer_backward(setting, exactly, inputs, exact);
  const std::vector<Answers> plain = plain_answers(setting, inputs, Pass::forward_and_backward);

  std::vector<Report> reports;
  reports.push_back(judge_answer("dq", args.dq, exact, plain, &Answers::dq));
  reports.push_back(judge_answer("dk", args.dk, exact, plain, &Answers::dk));
  reports.push_back(judge_answer("dv", args.dv, exact, plain, &Answers::dv));
  if (args.dgate) {
    reports.push_back(judge_answer("dgate", args.dgate, exact, plain, &Answers::dgate));
  }
  return reports;
}

}  // namespace vidsparse::reference
