// The library's calls as torch operators in the namespace vidsparse_native. They write into tensors
// that python/vidsparse allocates (forward allocates what it keeps for backward, which takes the
// host less here), and know neither autograd nor tracing: those are above them.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "errors.hpp"
#include "plans.hpp"
#include "tensors.hpp"
#include "vidsparse/backend.hpp"

namespace vidsparse::torch_ops {
namespace {

using torch::stable::Tensor;
using Ints = std::vector<std::int64_t>;

std::int64_t make_plan(Ints query, Ints key, Ints sizes, std::int64_t device_kind,
                       std::int64_t device_index, std::string backend) {
  return translated([&] {
    PlanOptions options;
    options.device = decode_device(device_kind, device_index);
    options.backend = backend;
    options.parallel = torch_threads();
    return plans().add(Plan(decode_problem(query, key, sizes), options));
  });
}

void free_plan(std::int64_t handle) { plans().remove(handle); }

std::string plan_detail(std::int64_t handle) {
  return translated([&] { return plans().find(handle)->backend_detail(); });
}

std::string lines(const std::vector<BackendInfo>& list) {
  std::string text;
  for (const BackendInfo& row : list) {
    text += row.name + "\t" + (row.verdict.ok ? "1" : "0") + "\t" + (row.on_request ? "1" : "0") +
            "\t" + row.summary + "\t" + row.verdict.reason + "\n";
  }
  return text;
}

// A line for each backend: name, whether it can run, whether on request only, summary, reason.
std::string list_backends(std::int64_t device_kind, std::int64_t device_index) {
  return translated([&] { return lines(backends(decode_device(device_kind, device_index))); });
}

std::string explain(Ints query, Ints key, Ints sizes, std::int64_t device_kind,
                    std::int64_t device_index) {
  return translated([&] {
    const Problem problem = decode_problem(query, key, sizes);
    return lines(backends(decode_device(device_kind, device_index), &problem));
  });
}

std::string list_cpu_isas() {
  return translated([] { return lines(cpu_isas()); });
}

// The oldest driver that runs the CUDA kernels, "" where none were built: drivers run the kernels
// of every toolkit of their own major version or an older one.
std::string driver_floor() {
#ifdef VIDSPARSE_CUDA_MAJOR
  return VIDSPARSE_CUDA_MAJOR >= 13 ? "580" : "525";
#else
  return "";
#endif
}

// The stream is that of the caller, and the workspace from torch's allocator on it.
template <class Args>
void run(void (Plan::*call)(const Args&, Workspace, void*) const, const Plan& plan,
         const Args& args, const Tensor& like, std::int64_t stream) {
  const auto bytes = static_cast<std::int64_t>(plan.workspace_bytes(args));
  const Tensor memory = empty(like, {bytes}, aoti_torch_dtype_uint8());
  (plan.*call)(args, {memory.data_ptr(), static_cast<std::size_t>(bytes)},
               reinterpret_cast<void*>(stream));  // NOLINT: how torch hands streams out
}

Gate gate_of(const std::optional<double>& value, const OptionalTensor& tensor) {
  if (tensor) return TensorView(view("gate", *tensor));
  return value ? Gate(static_cast<float>(*value)) : Gate();
}

Lengths lengths_of(const OptionalTensor& query, const OptionalTensor& key) {
  return {view("lengths.query", query), view("lengths.key", key)};
}

Selection selection_of(const Plan& plan, std::int64_t top_k, bool compete,
                       const OptionalTensor& always) {
  Selection selection;
  selection.top_k = top_k;
  selection.prefix_mode = compete ? PrefixMode::compete : PrefixMode::exempt;
  selection.always = mask_view("always", always, plan.key_layout().tiles());
  return selection;
}

void pool(std::int64_t handle, std::int64_t stream, OptionalTensor q, OptionalTensor k,
          OptionalTensor v, OptionalTensor query_lengths, OptionalTensor key_lengths,
          OptionalTensor qc, OptionalTensor kc, OptionalTensor vc) {
  translated([&] {
    const auto plan = plans().find(handle);
    PoolArgs args;
    args.q = view("q", q);
    args.k = view("k", k);
    args.v = view("v", v);
    args.lengths = lengths_of(query_lengths, key_lengths);
    args.qc = view("qc", qc);
    args.kc = view("kc", kc);
    args.vc = view("vc", vc);
    const OptionalTensor& any = qc ? qc : kc ? kc : vc;
    if (any) run(&Plan::pool, *plan, args, *any, stream);
  });
}

void select(std::int64_t handle, std::int64_t stream, Tensor qc, Tensor kc, OptionalTensor vc,
            OptionalTensor query_lengths, OptionalTensor key_lengths, std::int64_t top_k,
            bool compete, OptionalTensor always, double scale, Tensor mask, OptionalTensor oc,
            OptionalTensor coarse_max, OptionalTensor coarse_sum) {
  translated([&] {
    const auto plan = plans().find(handle);
    SelectArgs args;
    args.qc = view("qc", qc);
    args.kc = view("kc", kc);
    args.vc = view("vc", vc);
    args.lengths = lengths_of(query_lengths, key_lengths);
    args.selection = selection_of(*plan, top_k, compete, always);
    args.scale = scale;
    args.mask = mask_view("mask", mask, plan->key_layout().tiles());
    args.oc = view("oc", oc);
    args.coarse_max = view("coarse_max", coarse_max);
    args.coarse_sum = view("coarse_sum", coarse_sum);
    run(&Plan::select, *plan, args, qc, stream);
  });
}

void attend(std::int64_t handle, std::int64_t stream, Tensor q, Tensor k, Tensor v,
            OptionalTensor query_lengths, OptionalTensor key_lengths, double scale, Tensor mask,
            std::optional<double> gate_value, OptionalTensor gate, OptionalTensor oc, Tensor out,
            OptionalTensor lse) {
  translated([&] {
    const auto plan = plans().find(handle);
    AttendArgs args;
    args.q = view("q", q);
    args.k = view("k", k);
    args.v = view("v", v);
    args.lengths = lengths_of(query_lengths, key_lengths);
    args.scale = scale;
    args.mask = mask_view("mask", mask, plan->key_layout().tiles());
    args.gate = gate_of(gate_value, gate);
    args.oc = view("oc", oc);
    args.out = view("out", out);
    args.lse = view("lse", lse);
    run(&Plan::attend, *plan, args, q, stream);
  });
}

// What a forward gives besides out: lse, mask, oc, coarse_max, coarse_sum, those that are wanted.
using Kept =
    std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

struct Wanted {
  bool lse;
  bool mask;
  bool coarse;  // oc, coarse_max and coarse_sum
};

// Allocates what is wanted and completes `args`, which lack it, q, k, v and out.
Kept run_forward(const Plan& plan, std::int64_t stream, const Tensor& q, const Tensor& k,
                 const Tensor& v, const Tensor& out, const Wanted& wanted, ForwardArgs args) {
  const Problem& problem = plan.problem();
  const MaskShape shape = plan.mask_shape();
  const std::int32_t acc =
      problem.dtype == DType::f64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  OptionalTensor lse, mask, oc, coarse_max, coarse_sum;
  if (wanted.lse) {
    lse = empty(q, {shape.batch, shape.heads, plan.query_layout().tokens()}, acc);
  }
  if (wanted.mask) {
    mask = empty(q, {shape.batch, shape.heads, shape.query_tiles, shape.row_words()},
                 aoti_torch_dtype_int64());
  }
  if (wanted.coarse) {
    oc = empty(q, {shape.batch, shape.heads, shape.query_tiles, problem.head_dim}, acc);
    coarse_max = empty(q, {shape.batch, shape.heads, shape.query_tiles}, acc);
    coarse_sum = empty(q, {shape.batch, shape.heads, shape.query_tiles}, acc);
  }
  args.q = view("q", q);
  args.k = view("k", k);
  args.v = view("v", v);
  args.out = view("out", out);
  args.lse = view("lse", lse);
  args.mask = mask_view("mask", mask, shape.key_tiles);
  args.oc = view("oc", oc);
  args.coarse_max = view("coarse_max", coarse_max);
  args.coarse_sum = view("coarse_sum", coarse_sum);
  run(&Plan::forward, plan, args, q, stream);
  return {lse, mask, oc, coarse_max, coarse_sum};
}

Kept forward(std::int64_t handle, std::int64_t stream, Tensor q, Tensor k, Tensor v,
             OptionalTensor query_lengths, OptionalTensor key_lengths, std::int64_t top_k,
             bool compete, OptionalTensor always, double scale, std::optional<double> gate_value,
             OptionalTensor gate, Tensor out, bool want_lse, bool want_mask, bool want_coarse) {
  return translated([&] {
    const auto plan = plans().find(handle);
    ForwardArgs args;
    args.lengths = lengths_of(query_lengths, key_lengths);
    args.selection = selection_of(*plan, top_k, compete, always);
    args.scale = scale;
    args.gate = gate_of(gate_value, gate);
    return run_forward(*plan, stream, q, k, v, out, {want_lse, want_mask, want_coarse}, args);
  });
}

// A forward with all but its tensors fixed: what recurs is said once, since each argument of an
// operator costs the host some 0.1 us a call.
struct BoundForward {
  std::shared_ptr<const Plan> plan;
  ForwardArgs args;  // without tensors
  std::array<std::int64_t, 4> out_strides;
  Wanted wanted;
};

Registry<BoundForward>& calls() {
  // Never destroyed, as the plans' is.
  static auto* const instance = new Registry<BoundForward>("call");
  return *instance;
}

std::int64_t bind_forward(std::int64_t handle, std::int64_t top_k, bool compete, double scale,
                          std::optional<double> gate_value, Ints out_strides, bool want_lse,
                          bool want_mask, bool want_coarse) {
  return translated([&] {
    if (out_strides.size() != 4) refuse("out_strides", "4", std::to_string(out_strides.size()));
    BoundForward call;
    call.plan = plans().find(handle);
    call.args.selection = selection_of(*call.plan, top_k, compete, {});
    call.args.scale = scale;
    call.args.gate = gate_of(gate_value, {});
    std::copy(out_strides.begin(), out_strides.end(), call.out_strides.begin());
    call.wanted = {want_lse, want_mask, want_coarse};
    return calls().add(std::move(call));
  });
}

void free_call(std::int64_t call) { calls().remove(call); }

std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>
bound_forward(std::int64_t handle, std::int64_t stream, Tensor q, Tensor k, Tensor v,
              OptionalTensor gate) {
  return translated([&] {
    const auto call = calls().find(handle);
    const Tensor out = empty_like(q, call->out_strides);
    ForwardArgs args = call->args;
    if (gate) args.gate = TensorView(view("gate", *gate));
    const Kept kept = run_forward(*call->plan, stream, q, k, v, out, call->wanted, args);
    return std::tuple_cat(std::tuple(out), kept);
  });
}

void backward(std::int64_t handle, std::int64_t stream, Tensor q, Tensor k, Tensor v,
              OptionalTensor query_lengths, OptionalTensor key_lengths, double scale, Tensor mask,
              std::optional<double> gate_value, OptionalTensor gate, Tensor out, Tensor lse,
              OptionalTensor oc, OptionalTensor coarse_max, OptionalTensor coarse_sum, Tensor dout,
              OptionalTensor dlse, Tensor dq, Tensor dk, Tensor dv, OptionalTensor dgate) {
  translated([&] {
    const auto plan = plans().find(handle);
    BackwardArgs args;
    args.q = view("q", q);
    args.k = view("k", k);
    args.v = view("v", v);
    args.lengths = lengths_of(query_lengths, key_lengths);
    args.scale = scale;
    args.mask = mask_view("mask", mask, plan->key_layout().tiles());
    args.gate = gate_of(gate_value, gate);
    args.out = view("out", out);
    args.lse = view("lse", lse);
    args.oc = view("oc", oc);
    args.coarse_max = view("coarse_max", coarse_max);
    args.coarse_sum = view("coarse_sum", coarse_sum);
    args.dout = view("dout", dout);
    args.dlse = view("dlse", dlse);
    args.dq = view("dq", dq);
    args.dk = view("dk", dk);
    args.dv = view("dv", dv);
    args.dgate = view("dgate", dgate);
    run(&Plan::backward, *plan, args, q, stream);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY(vidsparse_native, library) {
  library.def(
      "make_plan(int[] query, int[] key, int[] sizes, int device_kind, int device_index, "
      "str backend) -> int");
  library.def("free_plan(int plan) -> ()");
  library.def("plan_detail(int plan) -> str");
  library.def("list_backends(int device_kind, int device_index) -> str");
  library.def(
      "explain(int[] query, int[] key, int[] sizes, int device_kind, int device_index) -> str");
  library.def("list_cpu_isas() -> str");
  library.def("driver_floor() -> str");
  library.def(
      "pool(int plan, int stream, Tensor? q, Tensor? k, Tensor? v, Tensor? query_lengths, "
      "Tensor? key_lengths, Tensor(a!)? qc, Tensor(b!)? kc, Tensor(c!)? vc) -> ()");
  library.def(
      "select(int plan, int stream, Tensor qc, Tensor kc, Tensor? vc, Tensor? query_lengths, "
      "Tensor? key_lengths, int top_k, bool compete, Tensor? always, float scale, "
      "Tensor(a!) mask, Tensor(b!)? oc, Tensor(c!)? coarse_max, Tensor(d!)? coarse_sum) -> ()");
  library.def(
      "attend(int plan, int stream, Tensor q, Tensor k, Tensor v, Tensor? query_lengths, "
      "Tensor? key_lengths, float scale, Tensor mask, float? gate_value, Tensor? gate, "
      "Tensor? oc, Tensor(a!) out, Tensor(b!)? lse) -> ()");
  library.def(
      "forward(int plan, int stream, Tensor q, Tensor k, Tensor v, Tensor? query_lengths, "
      "Tensor? key_lengths, int top_k, bool compete, Tensor? always, float scale, "
      "float? gate_value, Tensor? gate, Tensor(a!) out, bool want_lse, bool want_mask, "
      "bool want_coarse) -> (Tensor? lse, Tensor? mask, Tensor? oc, Tensor? coarse_max, "
      "Tensor? coarse_sum)");
  library.def(
      "bind_forward(int plan, int top_k, bool compete, float scale, float? gate_value, "
      "int[] out_strides, bool want_lse, bool want_mask, bool want_coarse) -> int");
  library.def("free_call(int call) -> ()");
  library.def(
      "bound_forward(int call, int stream, Tensor q, Tensor k, Tensor v, Tensor? gate) -> "
      "(Tensor out, Tensor? lse, Tensor? mask, Tensor? oc, Tensor? coarse_max, "
      "Tensor? coarse_sum)");
  library.def(
      "backward(int plan, int stream, Tensor q, Tensor k, Tensor v, Tensor? query_lengths, "
      "Tensor? key_lengths, float scale, Tensor mask, float? gate_value, Tensor? gate, "
      "Tensor out, Tensor lse, Tensor? oc, Tensor? coarse_max, Tensor? coarse_sum, Tensor dout, "
      "Tensor? dlse, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? dgate) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vidsparse_native, CompositeExplicitAutograd, library) {
  library.impl("make_plan", TORCH_BOX(&make_plan));
  library.impl("free_plan", TORCH_BOX(&free_plan));
  library.impl("plan_detail", TORCH_BOX(&plan_detail));
  library.impl("list_backends", TORCH_BOX(&list_backends));
  library.impl("explain", TORCH_BOX(&explain));
  library.impl("list_cpu_isas", TORCH_BOX(&list_cpu_isas));
  library.impl("driver_floor", TORCH_BOX(&driver_floor));
  library.impl("pool", TORCH_BOX(&pool));
  library.impl("select", TORCH_BOX(&select));
  library.impl("attend", TORCH_BOX(&attend));
  library.impl("forward", TORCH_BOX(&forward));
  library.impl("bind_forward", TORCH_BOX(&bind_forward));
  library.impl("free_call", TORCH_BOX(&free_call));
  library.impl("bound_forward", TORCH_BOX(&bound_forward));
  library.impl("backward", TORCH_BOX(&backward));
}

}  // namespace vidsparse::torch_ops
