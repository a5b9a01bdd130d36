#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "atomic_file.hpp"
#include "attend_inputs.hpp"
#include "commands.hpp"
#include "device/device_memory.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "reference/check.hpp"
#include "refuse.hpp"
#include "safetensors.hpp"
#include "tensor_difference.hpp"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {
namespace {

struct AttendOptions {
  std::string input;
  std::string output;
  LayoutOptions layout;
  SelectionOptions selection;
  RunOptions run;
  std::string gate;
  std::optional<double> scale;
  bool check = false;
  bool selection_map = false;
};

/// --gate: absent (the file's tensor decides), "none", or a number.
struct GateOption {
  bool given = false;
  std::optional<float> value;
};

GateOption parse_gate(const std::string& text) {
  if (text.empty()) return {};
  if (text == "none") return {true, std::nullopt};
  float value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value)) {
    refuse("--gate", "a finite number or none", "\"" + printable(text) + "\"");
  }
  return {true, value};
}

/// What one run wrote.
struct Results {
  explicit Results(const Plan& plan)
      : out(query_tensor(plan)), lse(token_rows(plan)), mask(plan.mask_shape()) {}

  OwnedTensor out;
  OwnedTensor lse;
  TileMask mask;
};

ForwardArgs forward_args(const AttendInputs& inputs, const Selection& selection, const Gate& gate,
                         std::optional<double> scale) {
  ForwardArgs args;
  args.q = inputs.q().ref;
  args.k = inputs.k().ref;
  args.v = inputs.v().ref;
  args.selection = selection;
  args.gate = gate;
  args.scale = scale;
  return args;
}

/// Runs on the plan's device, from host memory and back to it; returns the seconds without copies.
double run_forward(const Plan& plan, const ForwardArgs& args) {
  DeviceMemory memory(plan.device());
  const auto bytes = [](const TensorView& tensor) {
    return static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype);
  };
  for (const TensorView& input : {args.q, args.k, args.v}) memory.add(input.data, bytes(input));
  for (const TensorRef& output : {args.out, args.lse})
    memory.add_written(output.data, bytes(output));
  if (args.mask) {
    memory.add_written(args.mask.words, static_cast<std::size_t>(args.mask.shape.words()) * 8);
  }
  ForwardArgs there = args;
  there.q = memory.at(args.q);
  there.k = memory.at(args.k);
  there.v = memory.at(args.v);
  there.out = memory.at(args.out);
  there.lse = memory.at(args.lse);
  there.mask = memory.at(args.mask);
  if (args.gate.is_tensor()) {
    memory.add(args.gate.tensor().data, bytes(args.gate.tensor()));
    there.gate = Gate(memory.at(args.gate.tensor()));
  }
  const Workspace workspace = memory.scratch(plan.workspace_bytes(there));
  const auto start = std::chrono::steady_clock::now();
  plan.forward(there, workspace);
  memory.wait();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  memory.fetch();
  return seconds.count();
}

void write_results(AtomicFile& file, const Plan& plan, const AttendOptions& options,
                   const Results& results, std::int64_t kept) {
  const MaskShape& shape = results.mask.shape();
  const auto words = std::span(results.mask.view().words, static_cast<std::size_t>(shape.words()));
  const auto& out = results.out.ref.shape;
  const auto& lse = results.lse.ref.shape;
  std::vector<OutputTensor> tensors{
      {"out", results.out.ref.dtype, {out.begin(), out.end()}, results.out.memory.bytes()},
      {"lse", results.lse.ref.dtype, {lse.begin(), lse.begin() + 3}, results.lse.memory.bytes()},
      {"selection",
       DType::i64,
       {shape.batch, shape.heads, shape.query_tiles, shape.row_words()},
       std::as_bytes(words)}};
  OwnedTensor map;
  if (options.selection_map) {
    map = OwnedTensor(TensorView::dense(
        nullptr, DType::u8, 4, {shape.batch, shape.heads, shape.query_tiles, shape.key_tiles}));
    results.mask.to_bool(map.ref);
    const auto& sides = map.ref.shape;
    tensors.push_back(
        {"selection_map", DType::u8, {sides.begin(), sides.end()}, map.memory.bytes()});
  }
  write_safetensors(
      [&](std::span<const std::byte> bytes) { file.write(bytes.data(), bytes.size()); },
      std::move(tensors),
      {{"vidsparse", version()},
       {"sequence", plan.problem().query.to_string()},
       {"tile", options.layout.tile},
       {"key_tiles", std::to_string(shape.key_tiles)},
       {"top_k", std::to_string(kept)},
       {"backend", plan.backend()}});
}

/// Whether the results stand within their bounds; prints one line for each.
bool check(const Plan& plan, const ForwardArgs& args, const ParallelFor& parallel) {
  bool ok = true;
  std::printf("check against the reference: error of bound\n");
  for (const reference::Report& report : reference::check_forward(plan, args, parallel)) {
    std::printf("  %s\n", report.to_string().c_str());
    ok = ok && report.ok;
  }
  return ok;
}

/// How far the selection moves the result: the same call with every tile selected.
void print_deviation_from_dense(const Plan& plan, ForwardArgs args) {
  const OwnedTensor dense(query_tensor(plan));
  const TensorRef sparse = args.out;
  args.out = dense.ref;
  args.lse = {};
  args.mask = {};
  args.selection.top_k.reset();
  args.selection.sparsity = 0.0;
  run_forward(plan, args);
  const TensorDifference difference = compare_tensors(sparse, dense.ref);
  std::printf("deviation from dense: relative L2 %.4g, maximum %.4g at %s\n",
              difference.relative_l2, difference.maximum, difference.where.c_str());
}

void attend(const AttendOptions& options) {
  const GateOption gate_option = parse_gate(options.gate);
  const Selection selection = options.selection.selection();
  Problem problem;
  problem.query = options.layout.sequence();
  problem.tile = options.layout.tile_shape();
  const TileLayout layout(problem.query, problem.tile);  // refuses a bad grid or tile by its name
  AttendInputs inputs(options.input);
  if (gate_option.given) inputs.ignore_gate();
  inputs.fill(problem);
  inputs.check_tokens(layout.tokens());

  PlanOptions how;
  how.device = options.run.where();
  how.backend = options.run.backend;
  how.parallel = options.run.parallel();
  const Plan plan(problem, how);
  const std::int64_t kept = plan.resolve_top_k(selection);
  AtomicFile file("--out", options.output);

  inputs.load();
  Gate gate;
  if (gate_option.value) gate = Gate(*gate_option.value);
  if (inputs.has_gate()) gate = Gate(inputs.gate().ref);
  Results results(plan);
  ForwardArgs args = forward_args(inputs, selection, gate, options.scale);
  args.out = results.out.ref;
  args.lse = results.lse.ref;
  args.mask = results.mask.ref();

  const double seconds = run_forward(plan, args);
  write_results(file, plan, options, results, kept);
  file.commit();

  const MaskShape& shape = results.mask.shape();
  std::printf("%s: %lld query x %lld key tiles, k = %lld, backend %s (%s), %d threads, %.3f s\n",
              problem.query.to_string().c_str(), static_cast<long long>(shape.query_tiles),
              static_cast<long long>(shape.key_tiles), static_cast<long long>(kept),
              plan.backend().c_str(), plan.backend_detail().c_str(), how.parallel.concurrency(),
              seconds);
  if (options.check) {
    const bool ok = check(plan, args, how.parallel);
    print_deviation_from_dense(plan, args);
    if (!ok) throw CLI::RuntimeError(1);
  }
}

}  // namespace

void register_attend(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("attend", "Run the op on tensors q, k, v (and gate) of a file");
  const auto options = std::make_shared<AttendOptions>();
  command->add_option("input", options->input, "Safetensors file with q, k, v [B, S, H, D]")
      ->required();
  command->add_option("--out", options->output, "Safetensors file for out, lse, selection")
      ->required();
  options->layout.add_to(*command)->required();
  options->selection.add_to(*command, true);
  options->run.add_to(*command);
  options->run.add_device_to(*command);
  command->add_option(
      "--gate", options->gate,
      "Weight of the pooled branch, or none; default: the file's gate, if it has one");
  command->add_option("--scale", options->scale, "Factor of the scores (default: head_dim^-0.5)");
  command->add_flag("--check", options->check,
                    "Compare with the reference; exit with 1 when beyond its bounds");
  command->add_flag("--selection-map", options->selection_map,
                    "Also write selection_map, u8 [B, H, Nq, Nk]");
  command->callback([options] { attend(*options); });
}

}  // namespace vidsparse::tools
