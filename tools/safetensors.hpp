#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vidsparse/dtype.hpp"

namespace vidsparse::tools {

/// One entry of a safetensors header, validated.
struct TensorEntry {
  std::string name;
  std::string dtype_name;      ///< as the file spells it: "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  ///< absent for element types this library does not know
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< byte range within the data that follows the header
  std::uint64_t end = 0;

  std::uint64_t bytes() const { return end - begin; }
  /// "[1, 32760, 12, 128] BF16".
  std::string to_string() const;
};

/// A validated header: sizes agree with shapes, and the tensors cover the data without holes or
/// overlaps, so that any entry can be read without further checks.
struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  std::uint64_t data_start = 0;  ///< offset of the data in the file

  const TensorEntry* find(const std::string& name) const;
};

/// Longest header that is accepted: the limit of the format's own library.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

/// Checks the JSON text of a header against the size of the data behind it. `file` names the file
/// in errors: "FILE: tensor "q": expected ..., got ...".
SafetensorsHeader parse_safetensors_header(const std::string& file, const std::string& json,
                                           std::uint64_t data_bytes);

/// A safetensors file open for reading. Streams rather than maps: a file truncated meanwhile is an
/// error then, not a fault.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path);

  const SafetensorsHeader& header() const { return header_; }
  const std::string& file() const { return file_; }

  /// Reads the whole tensor into `target`, exactly entry.bytes() long.
  void read(const TensorEntry& entry, std::span<std::byte> target);

 private:
  std::string file_;
  std::ifstream stream_;
  SafetensorsHeader header_;
};

/// A tensor to be written: dense, row-major, `data` exactly as long as shape and dtype say.
struct OutputTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

/// Takes the next bytes of a file; throws when they cannot be written.
using ByteSink = std::function<void(std::span<const std::byte>)>;

/// Writes a whole file to `sink`: tensors by element size, then by name, so that every one is
/// aligned to its element; header padded to 8 bytes.
void write_safetensors(const ByteSink& sink, std::vector<OutputTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace vidsparse::tools
