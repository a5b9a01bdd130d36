#pragma once

namespace vidsparse::tools {

/// Exit codes of the command.
enum ExitCode : int {
  kExitOk = 0,
  kExitNegative = 1,  ///< the answer is no: --check found an error beyond its bound
  kExitBadInput = 2,  ///< one line on stderr names the argument; no output was touched
  kExitFailure = 3,   ///< out of memory, or a bug
};

/// Parses and runs `vidsparse ARGUMENTS...`; what main() returns.
int run_command_line(int argc, const char* const* argv);

}  // namespace vidsparse::tools
