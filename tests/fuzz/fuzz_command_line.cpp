// Any words after `plan`, `info` and `attend`: an exit code of the command, never anything else.
// The other subcommands start programs or long work; they share these options' parsers. `attend`
// finds no tensors here, so that it never writes. Run with -close_fd_mask=3, which drops what the
// command prints.
#include <fuzzer/FuzzedDataProvider.h>

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "command_line.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::array<const char*, 3> kCommands{"plan", "info", "attend"};
  constexpr std::array<const char*, 16> kOptions{
      "--grid",  "--tile",  "--prefix",  "--sparsity", "--top-k", "--prefix-mode",
      "--heads", "--batch", "--dtype",   "--head-dim", "--gate",  "--json",
      "--check", "--out",   "--threads", "--preset"};
  FuzzedDataProvider input(data, size);
  std::vector<std::string> words{"vidsparse", input.PickValueInArray(kCommands)};
  while (input.remaining_bytes() > 0 && words.size() < 40) {
    if (input.ConsumeBool()) words.emplace_back(input.PickValueInArray(kOptions));
    words.push_back(input.ConsumeRandomLengthString(40));
  }
  std::vector<const char*> arguments;
  for (const std::string& word : words) arguments.push_back(word.c_str());
  const int code =
      vidsparse::tools::run_command_line(static_cast<int>(arguments.size()), arguments.data());
  // 3 is a bug, or memory that a plan must not need.
  if (code != vidsparse::tools::kExitOk && code != vidsparse::tools::kExitBadInput) std::abort();
  return 0;
}
