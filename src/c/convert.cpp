#include "convert.hpp"

#include <atomic>
#include <exception>
#include <string>
#include <vector>

#include "sized_struct.hpp"

namespace vidsparse::c {
namespace {

std::int32_t enumerator(std::int32_t value, std::int32_t first, std::int32_t last,
                        const std::string& name) {
  if (value < first || value > last) {
    refuse(name, "one of " + std::to_string(first) + " to " + std::to_string(last),
           std::to_string(value));
  }
  return value;
}

void check_reserved(std::int32_t reserved, const std::string& name) {
  if (reserved != 0) refuse(name + ".reserved", "0", std::to_string(reserved));
}

template <class Tensor>
Tensor tensor_of(const vidsparse_tensor& tensor, const std::string& name) {
  enumerator(tensor.rank, 0, 4, name + ".rank");
  if (tensor.rank == 0) return {};
  enumerator(tensor.dtype, VIDSPARSE_F64, VIDSPARSE_U8, name + ".dtype");
  Tensor result;
  result.data = tensor.data;
  result.dtype = static_cast<DType>(tensor.dtype);
  result.rank = tensor.rank;
  for (std::size_t i = 0; i < static_cast<std::size_t>(tensor.rank); ++i) {
    result.shape[i] = tensor.shape[i];
    result.strides[i] = tensor.strides[i];
  }
  return result;
}

template <class Mask>
Mask mask_of(const vidsparse_mask& mask) {
  if (mask.words == nullptr) return {};
  Mask result;
  result.words = mask.words;
  result.shape = {mask.batch, mask.heads, mask.query_tiles, mask.key_tiles};
  result.head_stride = mask.head_stride;
  result.batch_stride = mask.batch_stride;
  return result;
}

Segment segment_of(const vidsparse_segment& segment, const std::string& name) {
  enumerator(segment.kind, VIDSPARSE_PLAIN, VIDSPARSE_VIDEO, name + ".kind");
  check_reserved(segment.reserved, name);
  if (segment.kind == VIDSPARSE_PLAIN) return Plain{segment.length};
  return Video{segment.t, segment.h, segment.w};
}

Sequence sequence_of(const vidsparse_sequence& sequence, const std::string& name) {
  if (sequence.packed_slots != 0) {
    if (sequence.segment_count != 0) {
      refuse(name + ".segment_count", "0 beside packed_slots",
             std::to_string(sequence.segment_count));
    }
    return Packed{sequence.packed_tiles, sequence.packed_slots};
  }
  if (sequence.packed_tiles != 0) {
    refuse(name + ".packed_slots", "the tokens of a tile beside packed_tiles", "0");
  }
  if (sequence.segment_count < 0) {
    refuse(name + ".segment_count", "at least 0", std::to_string(sequence.segment_count));
  }
  if (sequence.segment_count > 0) required(sequence.segments, (name + ".segments").c_str());
  std::vector<Segment> segments;
  for (std::int64_t i = 0; i < sequence.segment_count; ++i) {
    segments.push_back(
        segment_of(sequence.segments[i], name + ".segments[" + std::to_string(i) + "]"));
  }
  return Sequence(std::move(segments));
}

/// One run of a borrowed parallel_for. Tasks do not throw by contract; should one all the same, the
/// exception waits here while the caller's C frames unwind normally.
struct Job {
  const ParallelFor::Task* task = nullptr;
  std::atomic_flag failed{};
  std::exception_ptr failure{};
};

void run_task(void* arg, std::int64_t index) noexcept {
  Job& job = *static_cast<Job*>(arg);
  try {
    (*job.task)(index);
  } catch (...) {
    if (!job.failed.test_and_set()) job.failure = std::current_exception();
  }
}

Lengths lengths_of(const vidsparse_lengths& lengths) {
  return {view_of(lengths.query, "lengths.query"), view_of(lengths.key, "lengths.key")};
}

std::optional<double> scale_of(const vidsparse_scale& scale) {
  enumerator(scale.given, 0, 1, "scale.given");
  check_reserved(scale.reserved, "scale");
  return scale.given == 0 ? std::nullopt : std::optional<double>(scale.value);
}

Gate gate_of(const vidsparse_gate& gate) {
  enumerator(gate.kind, VIDSPARSE_GATE_NONE, VIDSPARSE_GATE_TENSOR, "gate.kind");
  if (gate.kind == VIDSPARSE_GATE_NONE) return {};
  if (gate.kind == VIDSPARSE_GATE_SCALAR) return {gate.value};
  return {view_of(gate.tensor, "gate.tensor")};
}

/// What every call that attends reads.
template <class Args, class Given>
void read_inputs(const Given& given, Args& args) {
  args.q = view_of(given.q, "q");
  args.k = view_of(given.k, "k");
  args.v = view_of(given.v, "v");
  args.lengths = lengths_of(given.lengths);
  args.scale = scale_of(given.scale);
  args.gate = gate_of(given.gate);
}

/// What a call writes of the coarse branch.
template <class Args, class Given>
void read_coarse_outputs(const Given& given, Args& args) {
  args.mask = ref_of(given.mask);
  args.oc = ref_of(given.oc, "oc");
  args.coarse_max = ref_of(given.coarse_max, "coarse_max");
  args.coarse_sum = ref_of(given.coarse_sum, "coarse_sum");
}

}  // namespace

TensorView view_of(const vidsparse_tensor& tensor, const char* name) {
  return tensor_of<TensorView>(tensor, name);
}
TensorRef ref_of(const vidsparse_tensor& tensor, const char* name) {
  return tensor_of<TensorRef>(tensor, name);
}
TileMaskView view_of(const vidsparse_mask& mask) { return mask_of<TileMaskView>(mask); }
TileMaskRef ref_of(const vidsparse_mask& mask) { return mask_of<TileMaskRef>(mask); }

Device device_of(const vidsparse_device& device, const char* name) {
  enumerator(device.kind, VIDSPARSE_CPU, VIDSPARSE_CUDA, std::string(name) + ".kind");
  return {device.kind == VIDSPARSE_CUDA ? Device::Kind::cuda : Device::Kind::cpu, device.index};
}

Problem problem_of(const vidsparse_problem* problem) {
  const vidsparse_problem given = read_struct(problem, "problem", vidsparse_problem_init());
  check_reserved(given.reserved, "problem");
  Problem result;
  result.query = sequence_of(given.query, "query");
  if (given.key != nullptr) result.key = sequence_of(*given.key, "key");
  result.tile = {given.tile.t, given.tile.h, given.tile.w};
  result.batch = given.batch;
  result.heads_q = given.heads_q;
  result.heads_kv = given.heads_kv;
  result.head_dim = given.head_dim;
  enumerator(given.dtype, VIDSPARSE_F64, VIDSPARSE_U8, "dtype");
  result.dtype = static_cast<DType>(given.dtype);
  return result;
}

PlanOptions options_of(const vidsparse_plan_options* options) {
  if (options == nullptr) return {};
  const vidsparse_plan_options given =
      read_struct(options, "options", vidsparse_plan_options_init());
  check_reserved(given.reserved, "options");
  if (given.concurrency < 1) {
    refuse("concurrency", "at least 1", std::to_string(given.concurrency));
  }
  PlanOptions result;
  result.device = device_of(given.device, "device");
  if (given.backend != nullptr) result.backend = given.backend;
  if (given.parallel_for != nullptr) {
    result.parallel =
        ParallelFor(given.concurrency, [run = given.parallel_for, context = given.parallel_context](
                                           std::int64_t count, const ParallelFor::Task& task) {
          Job job;
          job.task = &task;
          run(context, count, run_task, &job);
          if (job.failure) std::rethrow_exception(job.failure);
        });
  }
  return result;
}

Selection selection_of(const vidsparse_selection* selection) {
  vidsparse_selection defaults{};
  const vidsparse_selection given = read_struct(selection, "selection", defaults);
  enumerator(given.rule, VIDSPARSE_BY_SPARSITY, VIDSPARSE_BY_TOP_K, "selection.rule");
  enumerator(given.prefix_mode, VIDSPARSE_EXEMPT, VIDSPARSE_COMPETE, "prefix_mode");
  Selection result;
  // The field of the other rule is refused, not ignored: the caller meant something by it.
  if (given.rule == VIDSPARSE_BY_SPARSITY) {
    if (given.top_k != 0) refuse("top_k", "0 beside sparsity", std::to_string(given.top_k));
    result.sparsity = given.sparsity;
  } else {
    if (given.sparsity != 0) {
      refuse("sparsity", "0 beside top_k", std::to_string(given.sparsity));
    }
    result.top_k = given.top_k;
  }
  result.prefix_mode =
      given.prefix_mode == VIDSPARSE_COMPETE ? PrefixMode::compete : PrefixMode::exempt;
  result.always = view_of(given.always);
  return result;
}

PoolArgs args_of(const vidsparse_pool_args* args) {
  const vidsparse_pool_args given = read_struct(args, "args", vidsparse_pool_args_init());
  PoolArgs result;
  result.q = view_of(given.q, "q");
  result.k = view_of(given.k, "k");
  result.v = view_of(given.v, "v");
  result.lengths = lengths_of(given.lengths);
  result.qc = ref_of(given.qc, "qc");
  result.kc = ref_of(given.kc, "kc");
  result.vc = ref_of(given.vc, "vc");
  return result;
}

SelectArgs args_of(const vidsparse_select_args* args) {
  const vidsparse_select_args given = read_struct(args, "args", vidsparse_select_args_init());
  SelectArgs result;
  result.qc = view_of(given.qc, "qc");
  result.kc = view_of(given.kc, "kc");
  result.vc = view_of(given.vc, "vc");
  result.lengths = lengths_of(given.lengths);
  result.selection = selection_of(given.selection);
  result.scale = scale_of(given.scale);
  read_coarse_outputs(given, result);
  return result;
}

AttendArgs args_of(const vidsparse_attend_args* args) {
  const vidsparse_attend_args given = read_struct(args, "args", vidsparse_attend_args_init());
  AttendArgs result;
  read_inputs(given, result);
  result.mask = view_of(given.mask);
  result.oc = view_of(given.oc, "oc");
  result.out = ref_of(given.out, "out");
  result.lse = ref_of(given.lse, "lse");
  return result;
}

ForwardArgs args_of(const vidsparse_forward_args* args) {
  const vidsparse_forward_args given = read_struct(args, "args", vidsparse_forward_args_init());
  ForwardArgs result;
  read_inputs(given, result);
  result.selection = selection_of(given.selection);
  result.out = ref_of(given.out, "out");
  result.lse = ref_of(given.lse, "lse");
  read_coarse_outputs(given, result);
  return result;
}

BackwardArgs args_of(const vidsparse_backward_args* args) {
  const vidsparse_backward_args given = read_struct(args, "args", vidsparse_backward_args_init());
  BackwardArgs result;
  read_inputs(given, result);
  result.mask = view_of(given.mask);
  result.out = view_of(given.out, "out");
  result.lse = view_of(given.lse, "lse");
  result.oc = view_of(given.oc, "oc");
  result.coarse_max = view_of(given.coarse_max, "coarse_max");
  result.coarse_sum = view_of(given.coarse_sum, "coarse_sum");
  result.dout = view_of(given.dout, "dout");
  result.dlse = view_of(given.dlse, "dlse");
  result.dq = ref_of(given.dq, "dq");
  result.dk = ref_of(given.dk, "dk");
  result.dv = ref_of(given.dv, "dv");
  result.dgate = ref_of(given.dgate, "dgate");
  return result;
}

}  // namespace vidsparse::c
