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

std::vector<Report> check_forward(const core::Setting& setting, const ForwardArgs& args) {
  const OpInputs inputs = inputs_of(args);
  const Answers exact = answer_forward(setting, ExactArithmetic<double>{}, inputs);
  const Answers plain = answer_forward(setting, PlainArithmetic{setting.problem.dtype}, inputs);
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
    reports.push_back(judge_tensor("lse", args.lse, exact.lse.view(), plain.lse.view()));
  }
  reports.push_back(judge_tensor("out", args.out, exact.out.view(), plain.out.view()));
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
  const PlainArithmetic plainly{setting.problem.dtype};
  Answers exact = answer_forward(setting, exactly, inputs);
  Answers plain = answer_forward(setting, plainly, inputs);
  answer_backward(setting, exactly, inputs, exact);
  answer_backward(setting, plainly, inputs, plain);

  std::vector<Report> reports;
  reports.push_back(judge_tensor("dq", args.dq, exact.dq.view(), plain.dq.view()));
  reports.push_back(judge_tensor("dk", args.dk, exact.dk.view(), plain.dk.view()));
  reports.push_back(judge_tensor("dv", args.dv, exact.dv.view(), plain.dv.view()));
  if (args.dgate) {
    reports.push_back(judge_tensor("dgate", args.dgate, exact.dgate.view(), plain.dgate.view()));
  }
  return reports;
}

}  // namespace vidsparse::reference
