#include "tools_command.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>

#include "core/half.hpp"

#ifndef _WIN32
#include <sys/wait.h>
#endif

namespace vidsparse::tools {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder()
    : path_(fs::temp_directory_path() /
            ("vidsparse-test-" + std::to_string(std::random_device()()))) {
  fs::create_directory(path_);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryFolder::names() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

int CommandResult::error_lines() const {
  return static_cast<int>(std::count(errors.begin(), errors.end(), '\n'));
}

CommandResult run_command(const std::string& arguments, const std::string& setup) {
  const TemporaryFolder folder;
  const std::string out = folder.file("out");
  const std::string err = folder.file("err");
  const std::string line = "(" + setup + "\"" VIDSPARSE_COMMAND "\" " + arguments + ") >\"" + out +
                           "\" 2>\"" + err + "\"";
  const int status = std::system(line.c_str());
  CommandResult result;
#ifdef _WIN32
  result.exit_code = status;
#else
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
#endif
  result.output = read_text(out);
  result.errors = read_text(err);
  return result;
}

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

void write_random_safetensors(const std::string& path, const std::vector<RandomTensor>& tensors,
                              unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::vector<std::byte>> contents;
  std::vector<OutputTensor> outputs;
  for (const RandomTensor& tensor : tensors) {
    std::size_t count = 1;
    for (const std::int64_t side : tensor.shape) count *= static_cast<std::size_t>(side);
    std::vector<std::byte> data;
    const auto append = [&](auto value) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&value);
      data.insert(data.end(), bytes, bytes + sizeof value);
    };
    for (std::size_t i = 0; i < count; ++i) {
      const float value = normal(random);
      switch (tensor.dtype) {
        case DType::f64:
          append(static_cast<double>(value));
          break;
        case DType::f32:
          append(value);
          break;
        case DType::f16:
          append(core::to_f16(value));
          break;
        case DType::bf16:
          append(core::to_bf16(value));
          break;
        default:
          append(static_cast<std::int32_t>(value));
      }
    }
    contents.push_back(std::move(data));
    outputs.push_back({tensor.name, tensor.dtype, tensor.shape, contents.back()});
  }
  std::ofstream stream(path, std::ios::binary);
  write_safetensors(
      [&](std::span<const std::byte> bytes) {
        stream.write(reinterpret_cast<const char*>(bytes.data()),
                     static_cast<std::streamsize>(bytes.size()));
      },
      outputs);
}

std::vector<std::byte> read_tensor(const std::string& path, const std::string& name) {
  SafetensorsReader reader(path);
  const TensorEntry* entry = reader.header().find(name);
  if (entry == nullptr) throw std::runtime_error(path + " has no tensor " + name);
  std::vector<std::byte> data(entry->bytes());
  reader.read(*entry, data);
  return data;
}

}  // namespace vidsparse::tools
