#include "options.hpp"

#include <CLI/CLI.hpp>
#include <cmath>
#include <limits>
#include <map>

#include "parse.hpp"
#include "pool.hpp"
#include "presets.hpp"
#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

DType parse_dtype(const std::string& text) {
  static const std::map<std::string, DType> kNames{
      {"bf16", DType::bf16}, {"f16", DType::f16}, {"fp16", DType::f16}, {"f32", DType::f32},
      {"fp32", DType::f32},  {"f64", DType::f64}, {"fp64", DType::f64},
  };
  const auto found = kNames.find(text);
  if (found == kNames.end()) {
    refuse("--dtype", "bf16, fp16, fp32 or fp64", "\"" + printable(text) + "\"");
  }
  return found->second;
}

CLI::Range at_least_one() {
  return CLI::Range(std::int64_t{1}, std::numeric_limits<std::int64_t>::max());
}

}  // namespace

CLI::Validator number_between(double low, double high) {
  const CLI::Range range(low, high);
  const std::string description = range.get_description();
  const auto check = [range, description](const std::string& text) {
    double value = 0;
    const bool nan = CLI::detail::lexical_cast(text, value) && std::isnan(value);
    return nan ? "expected " + description + ", got " + text : range(text);
  };
  return CLI::Validator(check, description);
}

CLI::Option* LayoutOptions::add_to(CLI::App& command) {
  command.add_option("--tile", tile, "Tile of a multiple of 64 tokens, TxHxW")
      ->capture_default_str();
  command.add_option("--prefix", prefix,
                     "Lengths of plain segments (text) before the video: 77,12");
  return command.add_option("--grid", grid, "Latent tokens of the video, TxHxW: 21x30x52");
}

TileShape LayoutOptions::tile_shape() const {
  const auto [t, h, w] = parse_box("--tile", tile);
  return {t, h, w};
}

Sequence LayoutOptions::sequence() const {
  const auto [t, h, w] = parse_box("--grid", grid);
  return Sequence::grid({t, h, w}, parse_lengths("--prefix", prefix));
}

void ProblemOptions::add_to(CLI::App& command) {
  CLI::Option* grid = layout.add_to(command);
  command.add_option("--preset", preset, "One of " + preset_names())->excludes(grid);
  command.add_option("--heads", heads, "Heads (default: the preset's, else 12)")
      ->check(at_least_one());
  command.add_option("--head-dim", head_dim, "Head dimension (default: the preset's, else 128)")
      ->check(at_least_one());
  command.add_option("--batch", batch, "Batch size")->check(at_least_one())->capture_default_str();
  command.add_option("--dtype", dtype, "bf16, fp16, fp32 or fp64")->capture_default_str();
}

Problem ProblemOptions::problem() const {
  if (preset.empty() && layout.grid.empty()) {
    refuse("--grid", "--grid or --preset", "neither");
  }
  Problem problem;
  problem.heads_q = 12;
  if (preset.empty()) {
    problem.query = layout.sequence();
  } else {
    const Preset& model = find_preset("--preset", preset);
    const auto [t, h, w] = model.grid;
    problem.query = Sequence::grid({t, h, w}, parse_lengths("--prefix", layout.prefix));
    problem.heads_q = model.heads;
    problem.head_dim = model.head_dim;
  }
  problem.tile = layout.tile_shape();
  problem.batch = batch;
  if (heads != 0) problem.heads_q = heads;
  if (head_dim != 0) problem.head_dim = head_dim;
  problem.dtype = parse_dtype(dtype);
  return problem;
}

void SelectionOptions::add_to(CLI::App& command, bool required) {
  sparsity_option_ = command.add_option("--sparsity", sparsity,
                                        "Share of the video tiles that is left out, in [0, 1)");
  top_k_option_ = command.add_option("--top-k", top_k, "Video tiles kept per query tile");
  top_k_option_->excludes(sparsity_option_);
  if (!required) sparsity_option_->capture_default_str();
  command
      .add_option("--prefix-mode", prefix_mode,
                  "exempt: all prefix tiles and the top k; compete: the top k + P of all")
      ->check(CLI::IsMember({"exempt", "compete"}))
      ->capture_default_str();
  required_ = required;
}

Selection SelectionOptions::selection() const {
  if (required_ && sparsity_option_->count() + top_k_option_->count() == 0) {
    refuse("--sparsity", "--sparsity or --top-k", "neither");
  }
  Selection selection;
  if (top_k_option_->count() > 0) {
    selection.top_k = top_k;
  } else {
    selection.sparsity = sparsity;
  }
  selection.prefix_mode = prefix_mode == "compete" ? PrefixMode::compete : PrefixMode::exempt;
  return selection;
}

void RunOptions::add_to(CLI::App& command) {
  command.add_option("--backend", backend, "Force one of the backends that `info` lists");
  command.add_option("--threads", threads, "Threads; 0 for all available")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void RunOptions::add_device_to(CLI::App& command) {
  command.add_option("--device", device, "Where to run: cpu, or cuda:0 and so on")
      ->capture_default_str();
}

Device RunOptions::where() const { return parse_device("--device", device); }

ParallelFor RunOptions::parallel() const { return make_parallel_for(threads); }

}  // namespace vidsparse::tools
