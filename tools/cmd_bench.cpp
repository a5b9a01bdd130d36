#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "atomic_file.hpp"
#include "commands.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "stage_timer.hpp"
#include "text.hpp"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  ProblemOptions problem;
  SelectionOptions selection;
  RunOptions run;
  bool gate = false;
  bool no_backward = false;
  bool no_dense = false;
  double seconds = 1;
  std::optional<std::uint64_t> seed;
  std::string json;
};

struct Measured {
  std::vector<Stage> stages;  ///< in the order of the op, then dense
  double forward = 0;         ///< seconds
  double dense_forward = 0;   ///< 0 if not measured
  double backward = 0;
  double dense_backward = 0;
};

Measured measure(const Plan& plan, const ParallelFor& parallel, const BenchOptions& options,
                 std::uint64_t seed) {
  StageTimer::Options how;
  how.selection = options.selection.selection();
  how.gate = options.gate;
  how.backward = !options.no_backward;
  how.rule.seconds = options.seconds;
  how.seed = seed;
  StageTimer timer(plan, parallel, how);

  Measured measured;
  measured.stages = {timer.pool(), timer.select(), timer.attend(), timer.forward()};
  measured.forward = measured.stages.back().timing.median;
  if (how.backward) {
    measured.stages.push_back(timer.backward());
    measured.backward = measured.stages.back().timing.median;
  }
  if (!options.no_dense) {
    for (const Stage& stage : timer.dense()) measured.stages.push_back(stage);
    const std::size_t first = measured.stages.size() - (how.backward ? 2 : 1);
    measured.dense_forward = measured.stages[first].timing.median;
    if (how.backward) measured.dense_backward = measured.stages[first + 1].timing.median;
  }
  return measured;
}

void print(const Measured& measured) {
  std::printf("  %-15s %10s %10s %6s %12s %10s\n", "stage", "median ms", "fastest", "runs",
              "GFLOP/s", "GB/s");
  for (const Stage& stage : measured.stages) {
    const Timing& timing = stage.timing;
    std::printf("  %-15s %10.3f %10.3f %6d", stage.name.c_str(), 1e3 * timing.median,
                1e3 * timing.fastest, timing.runs);
    if (stage.flops > 0) {
      std::printf(" %12.1f\n", stage.flops / timing.median * 1e-9);
    } else {
      std::printf(" %12s %10.1f\n", "", stage.bytes / timing.median * 1e-9);
    }
  }
  if (measured.dense_forward > 0) {
    std::printf("forward %.2fx as fast as dense", measured.dense_forward / measured.forward);
    if (measured.backward > 0) {
      std::printf(", backward %.2fx", measured.dense_backward / measured.backward);
    }
    std::printf("\n");
  }
}

Json to_json(const Plan& plan, const BenchOptions& options, std::int64_t kept, int threads,
             std::uint64_t seed, const Measured& measured) {
  const Problem& problem = plan.problem();
  Json stages = Json::array();
  for (const Stage& stage : measured.stages) {
    Json row = {{"stage", stage.name},
                {"median_ms", 1e3 * stage.timing.median},
                {"fastest_ms", 1e3 * stage.timing.fastest},
                {"runs", stage.timing.runs}};
    if (stage.flops > 0) row["gflops"] = stage.flops / stage.timing.median * 1e-9;
    if (stage.bytes > 0) row["gbytes_per_s"] = stage.bytes / stage.timing.median * 1e-9;
    stages.push_back(row);
  }
  Json record = {
      {"date", utc_now()},
      {"vidsparse", version()},
      {"compiler", compiler_text()},
      {"device", plan.device().to_string()},
      {"cpu", cpu_name()},
      {"threads", threads},
      {"backend", plan.backend()},
      {"backend_detail", plan.backend_detail()},
      {"problem",
       {{"preset", options.problem.preset.empty() ? Json(nullptr) : Json(options.problem.preset)},
        {"sequence", problem.query.to_string()},
        {"tokens", plan.query_layout().tokens()},
        {"tile", {problem.tile.t, problem.tile.h, problem.tile.w}},
        {"batch", problem.batch},
        {"heads", problem.heads_q},
        {"head_dim", problem.head_dim},
        {"dtype", name_of(problem.dtype)},
        {"top_k", kept},
        {"prefix_mode", options.selection.prefix_mode},
        {"gate", options.gate},
        {"seed", seed}}},
      {"stages", stages}};
  if (measured.dense_forward > 0) {
    record["ratio_to_dense"] = {{"forward", measured.dense_forward / measured.forward}};
    if (measured.backward > 0) {
      record["ratio_to_dense"]["backward"] = measured.dense_backward / measured.backward;
    }
  }
  return record;
}

void bench(const BenchOptions& options) {
  PlanOptions how;
  how.backend = options.run.backend;
  how.parallel = options.run.parallel();
  const Plan plan(options.problem.problem(), how);
  const std::int64_t kept = plan.resolve_top_k(options.selection.selection());
  std::optional<AtomicFile> file;
  if (!options.json.empty()) file.emplace("--json", options.json);
  const std::uint64_t seed = options.seed ? *options.seed : std::random_device()();

  const Problem& problem = plan.problem();
  std::printf("%s, %lld tokens, batch %lld, %lld heads x %lld, %s, k = %lld of %lld tiles%s\n",
              problem.query.to_string().c_str(),
              static_cast<long long>(plan.query_layout().tokens()),
              static_cast<long long>(problem.batch), static_cast<long long>(problem.heads_q),
              static_cast<long long>(problem.head_dim), name_of(problem.dtype),
              static_cast<long long>(kept), static_cast<long long>(plan.key_layout().video_tiles()),
              options.gate ? ", gate" : "");
  std::printf("%s, %d threads, backend %s (%s), seed %llu\n", cpu_name().c_str(),
              how.parallel.concurrency(), plan.backend().c_str(), plan.backend_detail().c_str(),
              static_cast<unsigned long long>(seed));
  const Measured measured = measure(plan, how.parallel, options, seed);
  print(measured);
  if (file) {
    file->write(
        json_text(to_json(plan, options, kept, how.parallel.concurrency(), seed, measured)) + "\n");
    file->commit();
  }
}

}  // namespace

void register_bench(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Time the stages on random data, against dense by the same op");
  const auto options = std::make_shared<BenchOptions>();
  options->problem.layout.grid = "16x16x32";
  options->problem.add_to(*command);
  options->selection.add_to(*command, false);
  options->run.add_to(*command);
  command->add_flag("--gate", options->gate, "With an elementwise gate and the pooled branch");
  command->add_flag("--no-backward", options->no_backward, "Leave the backward out");
  command->add_flag("--no-dense", options->no_dense, "Leave dense out (slow on large grids)");
  command->add_option("--seconds", options->seconds, "Time spent on each stage at least")
      ->check(number_between(0.0, 3600.0))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the random data (default: fresh)");
  command->add_option("--json", options->json, "Write a record to this file");
  command->callback([options] { bench(*options); });
}

}  // namespace vidsparse::tools
