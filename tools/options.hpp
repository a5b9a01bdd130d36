#pragma once

#include <cstdint>
#include <string>

#include "vidsparse/backend.hpp"
#include "vidsparse/parallel.hpp"
#include "vidsparse/problem.hpp"

namespace CLI {
class App;
class Option;
class Validator;
}  // namespace CLI

namespace vidsparse::tools {

/// A check of an option: a number from `low` to `high`. (CLI::Range lets a NaN pass.)
CLI::Validator number_between(double low, double high);

// Groups of options that several subcommands share. Each must outlive the parse: commands keep
// theirs in a shared_ptr that their callback captures.

/// Where the tokens lie: --grid, --tile, --prefix.
struct LayoutOptions {
  std::string grid;
  std::string tile = "4x4x4";
  std::string prefix;

  CLI::Option* add_to(CLI::App& command);  ///< returns --grid
  TileShape tile_shape() const;
  /// The plain segments of --prefix, then the video of --grid.
  Sequence sequence() const;
};

/// A whole problem without tensors: --preset, or --grid with --heads and --head-dim; --batch,
/// --dtype.
struct ProblemOptions {
  LayoutOptions layout;
  std::string preset;
  std::int64_t heads = 0;  ///< 0: the preset's, else 12
  std::int64_t head_dim = 0;
  std::int64_t batch = 1;
  std::string dtype = "bf16";

  void add_to(CLI::App& command);
  Problem problem() const;
};

/// --sparsity or --top-k, and --prefix-mode.
struct SelectionOptions {
  double sparsity = 0.9;
  std::int64_t top_k = 0;
  std::string prefix_mode = "exempt";

  /// `required`: one of the two must be given; otherwise the default sparsity holds.
  void add_to(CLI::App& command, bool required);
  Selection selection() const;

 private:
  bool required_ = false;
  CLI::Option* sparsity_option_ = nullptr;
  CLI::Option* top_k_option_ = nullptr;
};

/// --backend and --threads.
struct RunOptions {
  std::string backend;
  std::string device = "cpu";
  int threads = 0;

  void add_to(CLI::App& command);
  /// Also --device, of a command that can run on a GPU.
  void add_device_to(CLI::App& command);
  Device where() const;
  ParallelFor parallel() const;
};

}  // namespace vidsparse::tools
