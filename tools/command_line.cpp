#include "command_line.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "commands.hpp"
#include "refuse.hpp"
#include "vidsparse/error.hpp"
#include "vidsparse/version.hpp"

namespace vidsparse::tools {
namespace {

/// The subcommand that was given, or the application itself.
const CLI::App& chosen(const CLI::App& app) {
  const auto given = app.get_subcommands();
  return given.empty() ? app : *given.front();
}

/// An empty value would be taken for the type's default, a --sparsity of 0: refused instead.
void refuse_empty_values(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands({})) {
    for (CLI::Option* option : command->get_options()) {
      if (option->get_type_size() == 0) continue;  // a flag
      option->check([](const std::string& value) {
        return value.empty() ? std::string("expected a value, got an empty one") : std::string();
      });
    }
  }
}

/// How the user wrote what the library calls `argument`: its `top_k` is our --top-k. Names that are
/// no option of the command (a tensor, an environment variable) stay.
std::string option_of(const CLI::App& command, const std::string& argument) {
  std::string name = argument;
  if (argument == "sequence") name = "grid";
  if (argument == "heads_q") name = "heads";
  for (char& c : name) {
    if (c == '_') c = '-';
  }
  const std::string option = "--" + name;
  return command.get_option_no_throw(option) == nullptr ? argument : option;
}

int report(const CLI::App& command, const std::string& line, ExitCode code) {
  const std::string name =
      command.get_parent() == nullptr ? "vidsparse" : "vidsparse " + command.get_name();
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", name.c_str(), printable(line, 2000).c_str());
  return code;
}

int report(const CLI::App& command, const Error& error) {
  std::string line = error.what();
  const std::string& argument = error.argument();
  if (!argument.empty() && line.starts_with(argument)) {
    line.replace(0, argument.size(), option_of(command, argument));
  }
  const bool bad_input =
      error.code() == ErrorCode::invalid_argument || error.code() == ErrorCode::unsupported;
  return report(command, line, bad_input ? kExitBadInput : kExitFailure);
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  CLI::App app("Video Sparse Attention: plan it, run it, look at it.", "vidsparse");
  app.set_version_flag("--version", version());
  app.require_subcommand(0, 1);  // an unknown word is then reported as such
  register_info(app);
  register_plan(app);
  register_attend(app);
  register_bench(app);
  register_denoise(app);
  register_inspect(app);
  refuse_empty_values(app);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      refuse("subcommand", "info, plan, attend, bench, denoise or inspect", "none");
    }
    if (std::fflush(stdout) != 0) refuse("stdout", "cannot be written");
    return kExitOk;
  } catch (const CLI::RuntimeError& answer) {
    return answer.get_exit_code();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(chosen(app), error.what(), kExitBadInput);
  } catch (const Error& error) {
    return report(chosen(app), error);
  } catch (const std::bad_alloc&) {
    return report(chosen(app), "memory: not enough for this problem", kExitFailure);
  } catch (const std::exception& error) {
    return report(chosen(app), error.what(), kExitFailure);
  }
}

}  // namespace vidsparse::tools
