#include "stage_timer.hpp"

#include <algorithm>
#include <chrono>

#include "reference/rows.hpp"

namespace vidsparse::tools {
namespace {

double bytes_of(const OwnedTensor& tensor) { return static_cast<double>(tensor.memory.size()); }

/// A stateless generator: element i of a stream is the same whatever the threads.
std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

/// Nearly normal, variance 1: the sum of four 16-bit uniforms.
float nearly_normal(std::uint64_t bits) {
  const std::uint64_t sum =
      (bits & 0xffffU) + ((bits >> 16) & 0xffffU) + ((bits >> 32) & 0xffffU) + (bits >> 48);
  return (static_cast<float>(sum) / 65536.0F - 2.0F) * 1.7320508F;
}

}  // namespace

Timing time_runs(const TimingRule& rule, const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  const Clock::time_point start = Clock::now();
  run();
  const int least = seconds(start) > rule.seconds ? 1 : rule.least_runs;
  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  while (static_cast<int>(times.size()) < least || seconds(begin) < rule.seconds) {
    const Clock::time_point one = Clock::now();
    run();
    times.push_back(seconds(one));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), static_cast<int>(times.size())};
}

StageTimer::StageTimer(const Plan& plan, const ParallelFor& parallel, const Options& options)
    : plan_(plan), parallel_(parallel), options_(options), mask_(plan.mask_shape()) {
  q_ = random(query_tensor(plan));
  k_ = random(key_tensor(plan));
  v_ = random(key_tensor(plan));
  qc_ = OwnedTensor(query_pooled(plan));
  kc_ = OwnedTensor(key_pooled(plan));
  out_ = OwnedTensor(query_tensor(plan));
  lse_ = OwnedTensor(token_rows(plan));
  if (options.gate) {
    gate_tensor_ = random(query_tensor(plan));
    vc_ = OwnedTensor(key_pooled(plan));
    oc_ = OwnedTensor(query_pooled(plan));
    coarse_max_ = OwnedTensor(query_tile_rows(plan));
    coarse_sum_ = OwnedTensor(query_tile_rows(plan));
  }
  if (options.backward) {
    dout_ = random(query_tensor(plan));
    dq_ = OwnedTensor(query_tensor(plan));
    dk_ = OwnedTensor(key_tensor(plan));
    dv_ = OwnedTensor(key_tensor(plan));
    if (options.gate) dgate_ = OwnedTensor(query_tensor(plan));
  }
}

OwnedTensor StageTimer::random(const TensorView& shape) {
  OwnedTensor tensor(shape);
  const std::uint64_t stream = mix(options_.seed + tensors_made_++);
  const std::int64_t count = tensor.ref.elements();
  constexpr std::int64_t kChunk = 1 << 16;
  parallel_((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (std::int64_t i = chunk * kChunk; i < end; ++i) {
      reference::store(tensor.ref, i, nearly_normal(mix(stream ^ static_cast<std::uint64_t>(i))));
    }
  });
  return tensor;
}

double StageTimer::attend_flops(const TileMask& mask) const {
  const MaskShape& shape = mask.shape();
  const auto slots = static_cast<double>(plan_.problem().tile.tokens());
  const std::int64_t pairs = count_set(mask.view().words, shape.words());
  return 4 * static_cast<double>(plan_.problem().head_dim) * slots * slots *
         static_cast<double>(pairs);
}

Stage StageTimer::measure(const std::string& name, const std::function<void()>& run) const {
  Stage stage;
  stage.name = name;
  stage.timing = time_runs(options_.rule, run);
  return stage;
}

Stage StageTimer::pool() {
  PoolArgs args;
  args.q = q_.ref;
  args.k = k_.ref;
  args.qc = qc_.ref;
  args.kc = kc_.ref;
  if (options_.gate) {
    args.v = v_.ref;
    args.vc = vc_.ref;
  }
  const Buffer workspace(plan_.workspace_bytes(args));
  Stage stage = measure("pool", [&] { plan_.pool(args, workspace.workspace()); });
  stage.bytes = bytes_of(q_) + bytes_of(k_) + bytes_of(qc_) + bytes_of(kc_);
  if (options_.gate) stage.bytes += bytes_of(v_) + bytes_of(vc_);
  return stage;
}

Stage StageTimer::select() {
  SelectArgs args;
  args.qc = qc_.ref;
  args.kc = kc_.ref;
  args.selection = options_.selection;
  args.mask = mask_.ref();
  if (options_.gate) {
    args.vc = vc_.ref;
    args.oc = oc_.ref;
    args.coarse_max = coarse_max_.ref;
    args.coarse_sum = coarse_sum_.ref;
  }
  const Buffer workspace(plan_.workspace_bytes(args));
  Stage stage = measure("select", [&] { plan_.select(args, workspace.workspace()); });
  const MaskShape shape = plan_.mask_shape();
  // The scores, and with a gate their product with vc.
  stage.flops = (options_.gate ? 4.0 : 2.0) * static_cast<double>(plan_.problem().head_dim) *
                static_cast<double>(shape.rows()) * static_cast<double>(shape.key_tiles);
  return stage;
}

Stage StageTimer::attend() {
  AttendArgs args;
  args.q = q_.ref;
  args.k = k_.ref;
  args.v = v_.ref;
  args.mask = mask_.view();
  args.out = out_.ref;
  args.lse = lse_.ref;
  if (options_.gate) {
    args.gate = Gate(gate_tensor_.ref);
    args.oc = oc_.ref;
  }
  const Buffer workspace(plan_.workspace_bytes(args));
  Stage stage = measure("attend", [&] { plan_.attend(args, workspace.workspace()); });
  stage.flops = attend_flops(mask_);
  return stage;
}

Stage StageTimer::time_forward(const std::string& name, const Selection& selection) {
  ForwardArgs args;
  args.q = q_.ref;
  args.k = k_.ref;
  args.v = v_.ref;
  args.selection = selection;
  args.out = out_.ref;
  args.lse = lse_.ref;
  args.mask = mask_.ref();
  if (options_.gate) {
    args.gate = Gate(gate_tensor_.ref);
    args.oc = oc_.ref;
    args.coarse_max = coarse_max_.ref;
    args.coarse_sum = coarse_sum_.ref;
  }
  const Buffer workspace(plan_.workspace_bytes(args));
  Stage stage = measure(name, [&] { plan_.forward(args, workspace.workspace()); });
  stage.flops = attend_flops(mask_);
  return stage;
}

// Runs on what the last forward left behind.
Stage StageTimer::time_backward(const std::string& name) {
  BackwardArgs args;
  args.q = q_.ref;
  args.k = k_.ref;
  args.v = v_.ref;
  args.mask = mask_.view();
  args.out = out_.ref;
  args.lse = lse_.ref;
  args.dout = dout_.ref;
  args.dq = dq_.ref;
  args.dk = dk_.ref;
  args.dv = dv_.ref;
  if (options_.gate) {
    args.gate = Gate(gate_tensor_.ref);
    args.oc = oc_.ref;
    args.coarse_max = coarse_max_.ref;
    args.coarse_sum = coarse_sum_.ref;
    args.dgate = dgate_.ref;
  }
  const Buffer workspace(plan_.workspace_bytes(args));
  Stage stage = measure(name, [&] { plan_.backward(args, workspace.workspace()); });
  // Five products where the forward has two.
  stage.flops = 2.5 * attend_flops(mask_);
  return stage;
}

Stage StageTimer::forward() { return time_forward("forward", options_.selection); }
Stage StageTimer::backward() { return time_backward("backward"); }

std::vector<Stage> StageTimer::dense() {
  Selection all = options_.selection;
  all.top_k.reset();
  all.sparsity = 0.0;
  std::vector<Stage> stages{time_forward("dense forward", all)};
  if (options_.backward) stages.push_back(time_backward("dense backward"));
  return stages;
}

}  // namespace vidsparse::tools
