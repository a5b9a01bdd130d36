#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace vidsparse::tools {

/// What became of a child process.
struct ProcessResult {
  int exit_code = 0;
  std::string error_text;  ///< what it wrote to stderr, at most the last few kilobytes
};

/// Fills `buffer` with up to `size` bytes of the child's input; 0 ends it.
using InputSource = std::function<std::size_t(char* buffer, std::size_t size)>;
/// Takes a piece of the child's output; false closes the pipe.
using OutputSink = std::function<bool(const char* data, std::size_t size)>;

/// Whether `program` is found on PATH.
bool program_exists(const std::string& program);

/// Runs `program` (looked up on PATH, no shell) and reads its stdout through `sink`. `what` names
/// the argument in the error when the program is missing.
ProcessResult run_reading(const std::string& program, const std::vector<std::string>& arguments,
                          const OutputSink& sink);

/// The same, writing `source` to its stdin. A child that closes its input early is no error here:
/// its exit code tells.
ProcessResult run_writing(const std::string& program, const std::vector<std::string>& arguments,
                          const InputSource& source);

}  // namespace vidsparse::tools
