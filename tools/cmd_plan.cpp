#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.hpp"
#include "cost.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "text.hpp"
#include "tile_shapes.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::ordered_json;

struct PlanOptionsGroup {
  ProblemOptions problem;
  SelectionOptions selection;
  RunOptions run;
  bool json = false;
};

/// The grid of the sequence's video.
std::array<std::int64_t, 3> grid_of(const Sequence& sequence) {
  const auto& video = std::get<Video>(sequence.segments().back());
  return {video.t, video.h, video.w};
}

Json tile_json(const TileCost& cost) {
  return {{"tile", {cost.tile.t, cost.tile.h, cost.tile.w}},
          {"tokens", cost.tile.tokens()},
          {"tiles", static_cast<std::int64_t>(cost.tiles)},
          {"padding_waste", cost.waste}};
}

Json describe(const PlanOptionsGroup& options) {
  const Problem problem = options.problem.problem();
  const Selection selection = options.selection.selection();
  PlanOptions how;
  how.backend = options.run.backend;
  how.parallel = options.run.parallel();
  const Plan plan(problem, how);

  const TileLayout& layout = plan.query_layout();
  const std::int64_t kept = plan.resolve_top_k(selection);
  const Flops flops = flops_of(plan, kept, selection.prefix_mode);
  const ExtraMemory memory = extra_memory_of(plan, selection);
  const std::array<std::int64_t, 3> grid = grid_of(problem.query);
  const TileCost cost = tile_cost(grid, problem.tile);

  Json better = Json::array();
  for (const TileCost& other : better_tiles(grid, cost)) better.push_back(tile_json(other));
  Json described = {
      {"sequence", problem.query.to_string()},
      {"batch", problem.batch},
      {"heads", problem.heads_q},
      {"head_dim", problem.head_dim},
      {"dtype", name_of(problem.dtype)},
      {"tokens", layout.tokens()},
      {"tile", tile_json(cost)},
      {"prefix_tiles", layout.plain_tiles()},
      {"prefix_mode", options.selection.prefix_mode},
      {"top_k", kept},
      {"sparsity", 1 - static_cast<double>(kept) / static_cast<double>(layout.video_tiles())},
      {"flops",
       {{"dense", flops.dense},
        {"attend_full_tiles", flops.slots},
        {"attend_tokens", flops.tokens},
        {"select", flops.select}}},
      {"extra_memory_bytes",
       {{"forward", memory.forward},
        {"training", memory.training},
        {"dense_forward", 0},
        {"dense_training", memory.dense_training},
        {"q", memory.q_bytes}}},
      {"backend", plan.backend()},
      {"backend_detail", plan.backend_detail()},
      {"threads", how.parallel.concurrency()},
      {"better_tiles", better},
  };
  return described;
}

std::string shape_text(const Json& tile) {
  return box_text({tile["tile"][0].get<std::int64_t>(), tile["tile"][1].get<std::int64_t>(),
                   tile["tile"][2].get<std::int64_t>()});
}

void print_memory(const Json& plan) {
  const Json& memory = plan["extra_memory_bytes"];
  const double q_bytes = memory["q"].get<double>();
  const auto line = [&](const char* what, const char* ours, const char* dense) {
    const double bytes = memory[ours].get<double>();
    std::printf("  %-9s %s beyond inputs and outputs (%s of q), dense %s\n", what,
                bytes_text(bytes).c_str(), percent_text(q_bytes > 0 ? bytes / q_bytes : 0).c_str(),
                bytes_text(memory[dense].get<double>()).c_str());
  };
  std::printf("extra memory, backend %s (%s), %d threads\n",
              plan["backend"].get<std::string>().c_str(),
              plan["backend_detail"].get<std::string>().c_str(), plan["threads"].get<int>());
  line("forward", "forward", "dense_forward");
  line("training", "training", "dense_training");
}

void print_better_tiles(const Json& plan) {
  const Json& better = plan["better_tiles"];
  if (better.empty()) {
    std::printf("no compact tile of up to 384 tokens wastes less\n");
    return;
  }
  std::printf("tiles that waste less, the best of each size\n");
  for (const Json& tile : better) {
    std::printf("  %-9s %3lld tokens, %7lld tiles, padding waste %s\n", shape_text(tile).c_str(),
                tile["tokens"].get<long long>(), tile["tiles"].get<long long>(),
                percent_text(tile["padding_waste"].get<double>()).c_str());
  }
  std::printf(
      "A trained checkpoint is bound to the tile it was trained with, 4x4x4 in all released ones;\n"
      "another tile is for new training and for use without training.\n");
}

void print(const Json& plan) {
  const Json& tile = plan["tile"];
  const Json& flops = plan["flops"];
  std::printf("%s, %lld tokens, batch %lld, %lld heads x %lld, %s\n",
              plan["sequence"].get<std::string>().c_str(), plan["tokens"].get<long long>(),
              plan["batch"].get<long long>(), plan["heads"].get<long long>(),
              plan["head_dim"].get<long long>(), plan["dtype"].get<std::string>().c_str());
  std::printf("tile %s: %lld video tiles, padding waste %s; %lld prefix tiles\n",
              shape_text(tile).c_str(), tile["tiles"].get<long long>(),
              percent_text(tile["padding_waste"].get<double>()).c_str(),
              plan["prefix_tiles"].get<long long>());
  std::printf("k = %lld video tiles per query tile, sparsity %.4f, prefix mode %s\n",
              plan["top_k"].get<long long>(), plan["sparsity"].get<double>(),
              plan["prefix_mode"].get<std::string>().c_str());
  const double dense = flops["dense"].get<double>();
  const double slots = flops["attend_full_tiles"].get<double>();
  std::printf("forward arithmetic\n");
  std::printf("  dense     %s\n", flops_text(dense).c_str());
  std::printf("  attend    %s over full tiles (dense / %.2f), %s over tokens\n",
              flops_text(slots).c_str(), slots > 0 ? dense / slots : 0,
              flops_text(flops["attend_tokens"].get<double>()).c_str());
  std::printf("  select    %s\n", flops_text(flops["select"].get<double>()).c_str());
  print_memory(plan);
  print_better_tiles(plan);
}

}  // namespace

void register_plan(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("plan", "Tiles, arithmetic and memory of a problem, without running it");
  const auto options = std::make_shared<PlanOptionsGroup>();
  options->problem.add_to(*command);
  options->selection.add_to(*command, false);
  options->run.add_to(*command);
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] {
    const Json plan = describe(*options);
    if (options->json) {
      std::printf("%s\n", json_text(plan).c_str());
    } else {
      print(plan);
    }
  });
}

}  // namespace vidsparse::tools
