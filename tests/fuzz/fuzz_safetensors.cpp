// Any bytes as a safetensors file: read whole or refused with an Error, never anything else.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "safetensors.hpp"
#include "vidsparse/error.hpp"

namespace {

namespace fs = std::filesystem;
using vidsparse::tools::SafetensorsReader;
using vidsparse::tools::TensorEntry;

const std::string& file_name() {
  static const std::string name =
      (fs::temp_directory_path() / ("vidsparse-fuzz-" + std::to_string(std::random_device()())))
          .string();
  static const int registered = std::atexit([] { fs::remove(name); });
  (void)registered;
  return name;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider input(data, size);
  // Mostly an honest length, so that the JSON behind it is reached.
  const bool honest = input.ConsumeIntegralInRange(0, 15) != 0;
  const auto claimed = input.ConsumeIntegral<std::uint64_t>();
  const auto data_bytes = input.ConsumeIntegralInRange<std::size_t>(0, 512);
  const std::string header = input.ConsumeRemainingBytesAsString();
  const std::uint64_t length = honest ? header.size() : claimed;

  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  file += header + std::string(data_bytes, '\1');
  std::ofstream(file_name(), std::ios::binary) << file;
  try {
    SafetensorsReader reader(file_name());
    std::uint64_t covered = 0;
    for (const TensorEntry& entry : reader.header().entries) {
      if (entry.begin != covered) std::abort();
      covered = entry.end;
      std::vector<std::byte> bytes(entry.bytes());
      reader.read(entry, bytes);
    }
    if (reader.header().data_start + covered != file.size()) std::abort();
  } catch (const vidsparse::Error& error) {
    // One line, as the command prints it.
    if (std::strchr(error.what(), '\n') != nullptr) std::abort();
  }
  return 0;
}
