#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "safetensors.hpp"

namespace vidsparse::tools {

/// An empty folder that goes away, with all in it, at the end of a test.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }
  /// Names of everything in it, sorted.
  std::vector<std::string> names() const;

 private:
  std::filesystem::path path_;
};

struct CommandResult {
  int exit_code = -1;
  std::string output;
  std::string errors;

  int error_lines() const;
};

/// Runs the built `vidsparse` with `arguments` through the shell, which must quote nothing in them.
/// `setup` is shell text to run before it: "ulimit -f 8; ".
CommandResult run_command(const std::string& arguments, const std::string& setup = {});

std::string read_text(const std::string& path);
void write_text(const std::string& path, const std::string& text);

/// A tensor to be written: standard normal numbers.
struct RandomTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
};

void write_random_safetensors(const std::string& path, const std::vector<RandomTensor>& tensors,
                              unsigned seed);

/// The bytes of one tensor of a file.
std::vector<std::byte> read_tensor(const std::string& path, const std::string& name);

}  // namespace vidsparse::tools
