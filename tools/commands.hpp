#pragma once

// The subcommands of `vidsparse`. Each lives in a cmd_NAME.cpp of its own and adds itself, with its
// options, to the application; its callback does the work.
//
// Rules for a callback: results go to stdout, progress and errors to stderr. Bad input is thrown as
// vidsparse::Error naming the option ("--tile: expected ..., got ..."): main prints that one line
// and exits with 2. A negative answer that is no error (a failed --check) is
// `throw CLI::RuntimeError(1)`, which prints nothing more.

namespace CLI {
class App;
}

namespace vidsparse::tools {

void register_info(CLI::App& app);
void register_plan(CLI::App& app);
void register_attend(CLI::App& app);
void register_bench(CLI::App& app);
void register_denoise(CLI::App& app);
void register_inspect(CLI::App& app);

}  // namespace vidsparse::tools
