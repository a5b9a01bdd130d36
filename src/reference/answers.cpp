#include "reference/answers.hpp"

#include "reference/op.hpp"

namespace vidsparse::reference {
namespace {

/// Workspace for one call, 64-byte aligned.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : storage_(bytes / sizeof(Block) + 1), bytes_(bytes) {}
  Workspace workspace() { return {storage_.data(), bytes_}; }

 private:
  struct alignas(64) Block {
    std::byte bytes[64];
  };
  std::vector<Block> storage_;
  std::size_t bytes_;
};

}  // namespace

DenseTensor::DenseTensor(DType dtype, int rank, std::array<std::int64_t, 4> sides)
    : shape_(TensorView::dense(nullptr, dtype, rank, sides)),
      storage_(static_cast<std::size_t>(shape_.elements()) * size_of(dtype) + 1) {}

template <class Arithmetic>
Answers answer_forward(const core::Setting& setting, const Arithmetic& arithmetic,
                       const OpInputs& inputs) {
  const Op<Arithmetic> op(setting, arithmetic);
  const Problem& problem = setting.problem;
  const DType dtype = dtype_of<typename Arithmetic::Scalar>();
  const std::int64_t batch = problem.batch;
  const std::int64_t heads = problem.heads_q;
  const std::int64_t query_tiles = setting.query.tiles();
  const std::int64_t key_tiles = setting.key.tiles();
  const bool coarse = !inputs.gate.is_none() && !inputs.oc;

  Answers answers;
  PoolArgs pooled;
  pooled.q = inputs.q;
  pooled.k = inputs.k;
  pooled.v = inputs.v;
  pooled.lengths = inputs.lengths;
  answers.qc = DenseTensor(dtype, 4, {batch, heads, query_tiles, problem.head_dim});
  answers.kc = DenseTensor(dtype, 4, {batch, problem.key_heads(), key_tiles, problem.head_dim});
  pooled.qc = answers.qc.ref();
  pooled.kc = answers.kc.ref();
  if (coarse) {
    answers.vc = DenseTensor(dtype, 4, {batch, problem.key_heads(), key_tiles, problem.head_dim});
    pooled.vc = answers.vc.ref();
  }
  op.pool(pooled, Scratch(op.workspace_bytes(pooled)).workspace());

  if (coarse) {
    answers.oc = DenseTensor(dtype, 4, {batch, heads, query_tiles, problem.head_dim});
    answers.coarse_max = DenseTensor(dtype, 3, {batch, heads, query_tiles});
    answers.coarse_sum = DenseTensor(dtype, 3, {batch, heads, query_tiles});
    SelectArgs select;
    select.qc = answers.qc.view();
    select.kc = answers.kc.view();
    select.vc = answers.vc.view();
    select.lengths = inputs.lengths;
    // No mask is asked for, so that any legal k will do.
    select.selection.sparsity = 0.0;
    select.scale = inputs.scale;
    select.oc = answers.oc.ref();
    select.coarse_max = answers.coarse_max.ref();
    select.coarse_sum = answers.coarse_sum.ref();
    op.select(select, Scratch(op.workspace_bytes(select)).workspace());
  }

  if (inputs.mask) {
    answers.out = DenseTensor(dtype, 4, {batch, setting.query.tokens(), heads, problem.head_dim});
    answers.lse = DenseTensor(dtype, 3, {batch, heads, setting.query.tokens()});
    AttendArgs attend;
    attend.q = inputs.q;
    attend.k = inputs.k;
    attend.v = inputs.v;
    attend.lengths = inputs.lengths;
    attend.scale = inputs.scale;
    attend.mask = *inputs.mask;
    attend.gate = inputs.gate;
    attend.oc = inputs.oc ? inputs.oc : answers.oc.view();
    attend.out = answers.out.ref();
    attend.lse = answers.lse.ref();
    op.attend(attend, Scratch(op.workspace_bytes(attend)).workspace());
  }
  return answers;
}

template <class Arithmetic>
void answer_backward(const core::Setting& setting, const Arithmetic& arithmetic,
                     const OpInputs& inputs, Answers& answers) {
  const Op<Arithmetic> op(setting, arithmetic);
  const Problem& problem = setting.problem;
  const DType dtype = dtype_of<typename Arithmetic::Scalar>();
  const std::array<std::int64_t, 4> query = {problem.batch, setting.query.tokens(), problem.heads_q,
                                             problem.head_dim};
  const std::array<std::int64_t, 4> key = {problem.batch, setting.key.tokens(), problem.key_heads(),
                                           problem.head_dim};
  answers.dq = DenseTensor(dtype, 4, query);
  answers.dk = DenseTensor(dtype, 4, key);
  answers.dv = DenseTensor(dtype, 4, key);
  if (inputs.gate.is_tensor()) answers.dgate = DenseTensor(dtype, 4, query);

  BackwardArgs args;
  args.q = inputs.q;
  args.k = inputs.k;
  args.v = inputs.v;
  args.lengths = inputs.lengths;
  args.scale = inputs.scale;
  args.mask = *inputs.mask;
  args.gate = inputs.gate;
  args.out = answers.out.view();
  args.lse = answers.lse.view();
  args.oc = answers.oc.view();
  args.coarse_max = answers.coarse_max.view();
  args.coarse_sum = answers.coarse_sum.view();
  args.dout = inputs.dout;
  args.dlse = inputs.dlse;
  args.dq = answers.dq.ref();
  args.dk = answers.dk.ref();
  args.dv = answers.dv.ref();
  if (inputs.gate.is_tensor()) args.dgate = answers.dgate.ref();
  op.backward(args, Scratch(op.workspace_bytes(args)).workspace());
}

template Answers answer_forward(const core::Setting&, const ExactArithmetic<double>&,
                                const OpInputs&);
template void answer_backward(const core::Setting&, const ExactArithmetic<double>&, const OpInputs&,
                              Answers&);
template Answers answer_forward(const core::Setting&, const ExactArithmetic<float>&,
                                const OpInputs&);
template void answer_backward(const core::Setting&, const ExactArithmetic<float>&, const OpInputs&,
                              Answers&);
template Answers answer_forward(const core::Setting&, const PlainArithmetic&, const OpInputs&);
template void answer_backward(const core::Setting&, const PlainArithmetic&, const OpInputs&,
                              Answers&);

}  // namespace vidsparse::reference
