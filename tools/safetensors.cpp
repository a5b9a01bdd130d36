#include "safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensors are read without byte swaps");

struct ElementType {
  const char* name;
  std::uint64_t bytes;
  std::optional<DType> dtype;
};

constexpr std::array<ElementType, 15> kElementTypes{{
    {"F64", 8, DType::f64},
    {"F32", 4, DType::f32},
    {"F16", 2, DType::f16},
    {"BF16", 2, DType::bf16},
    {"I64", 8, DType::i64},
    {"I32", 4, DType::i32},
    {"U8", 1, DType::u8},
    {"BOOL", 1, DType::u8},
    {"I8", 1, std::nullopt},
    {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},
    {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},
    {"F8_E4M3", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt},
}};

const ElementType* element_type(const std::string& name) {
  const auto found = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                  [&](const ElementType& type) { return name == type.name; });
  return found == kElementTypes.end() ? nullptr : &*found;
}

/// The name under which our own tensors are written.
const char* file_name_of(DType dtype) {
  const auto found = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                  [&](const ElementType& type) { return type.dtype == dtype; });
  return found->name;
}

/// How an offending JSON value is shown in an error.
std::string shown(const Json& value) {
  if (value.is_structured() && value.size() > 16) return value.type_name();
  return printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 60);
}

/// The DOM, refusing what it would hide (a key given twice) and what could exhaust memory (nesting
/// deeper than a header has).
Json parse_json(const std::string& file, const std::string& text) {
  constexpr int kDeepest = 3;  // header > tensor > shape
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth >= kDeepest) refuse(file, "header nests too deeply");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        refuse(file, "header has \"" + printable(key) + "\" twice");
      }
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception&) {
    refuse(file, "header is not valid JSON");
  }
}

std::uint64_t unsigned_number(const std::string& where, const char* what, const Json& value) {
  if (!value.is_number_unsigned()) {
    refuse(where, std::string("whole numbers of at least 0 in ") + what, shown(value));
  }
  return value.get<std::uint64_t>();
}

TensorEntry parse_entry(const std::string& where, const std::string& name, const Json& fields,
                        std::uint64_t data_bytes) {
  if (!fields.is_object()) refuse(where, "an object", shown(fields));
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!fields.contains(field)) refuse(where, std::string("lacks \"") + field + "\"");
  }
  if (fields.size() != 3) refuse(where, "has fields besides dtype, shape and data_offsets");

  TensorEntry entry;
  entry.name = name;
  const Json& dtype = fields["dtype"];
  const ElementType* type = dtype.is_string() ? element_type(dtype.get<std::string>()) : nullptr;
  if (type == nullptr) refuse(where, "a known dtype", shown(dtype));
  entry.dtype_name = type->name;
  entry.dtype = type->dtype;

  const Json& shape = fields["shape"];
  if (!shape.is_array()) refuse(where, "an array as shape", shown(shape));
  // Sides that multiply to zero may still overflow on the way: every prefix is checked.
  std::uint64_t bytes = type->bytes;
  for (const Json& side : shape) {
    const std::uint64_t length = unsigned_number(where, "shape", side);
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (length > kMost || (length != 0 && bytes > kMost / length)) {
      refuse(where, "a size that fits 64 bits", "shape " + shown(shape));
    }
    bytes *= length;
    entry.shape.push_back(static_cast<std::int64_t>(length));
  }

  const Json& offsets = fields["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    refuse(where, "two data_offsets", shown(offsets));
  }
  entry.begin = unsigned_number(where, "data_offsets", offsets[0]);
  entry.end = unsigned_number(where, "data_offsets", offsets[1]);
  if (entry.begin > entry.end || entry.end > data_bytes) {
    refuse(where, "data_offsets within the file's " + std::to_string(data_bytes) + " data bytes",
           shown(offsets));
  }
  if (entry.bytes() != bytes) {
    refuse(where, std::to_string(bytes) + " bytes for " + entry.to_string(),
           std::to_string(entry.bytes()));
  }
  return entry;
}

}  // namespace

std::string TensorEntry::to_string() const {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "] " + dtype_name;
}

const TensorEntry* SafetensorsHeader::find(const std::string& name) const {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const TensorEntry& entry) { return entry.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

SafetensorsHeader parse_safetensors_header(const std::string& file, const std::string& json,
                                           std::uint64_t data_bytes) {
  if (json.empty() || json.front() != '{') refuse(file, "header does not begin with '{'");
  const Json root = parse_json(file, json);

  SafetensorsHeader header;
  for (const auto& [name, fields] : root.items()) {
    if (name == "__metadata__") {
      if (!fields.is_object()) refuse(file, "an object as __metadata__", shown(fields));
      for (const auto& [key, value] : fields.items()) {
        if (!value.is_string()) refuse(file, "strings in __metadata__", shown(value));
        header.metadata[key] = value.get<std::string>();
      }
    } else {
      const std::string where = file + ": tensor \"" + printable(name, 60) + "\"";
      header.entries.push_back(parse_entry(where, name, fields, data_bytes));
    }
  }
  // Empty tensors share their offset with a neighbour; end breaks the tie so that they come first.
  std::sort(header.entries.begin(), header.entries.end(),
            [](const TensorEntry& a, const TensorEntry& b) {
              return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
            });
  std::uint64_t covered = 0;
  for (const TensorEntry& entry : header.entries) {
    if (entry.begin != covered) {
      refuse(file + ": tensor \"" + printable(entry.name, 60) + "\"",
             "data at byte " + std::to_string(covered) + " (no hole, no overlap)",
             std::to_string(entry.begin));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    refuse(file, std::to_string(covered) + " data bytes as the header says",
           std::to_string(data_bytes));
  }
  return header;
}

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path) : file_(path.string()) {
  std::error_code failure;
  const std::filesystem::file_status status = std::filesystem::status(path, failure);
  if (!std::filesystem::exists(status)) refuse(file_, "no such file");
  if (!std::filesystem::is_regular_file(status)) refuse(file_, "not a regular file");
  const std::uint64_t size = std::filesystem::file_size(path, failure);
  stream_.open(path, std::ios::binary);
  if (failure || !stream_) refuse(file_, "cannot be opened for reading");

  std::array<unsigned char, 8> length{};
  if (!stream_.read(reinterpret_cast<char*>(length.data()), length.size())) {
    refuse(file_, "a safetensors file", std::to_string(size) + " bytes");
  }
  const auto header_bytes = std::bit_cast<std::uint64_t>(length);
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - length.size()) {
    refuse(file_, "a header within the file's " + std::to_string(size) + " bytes",
           "a header length of " + std::to_string(header_bytes));
  }
  std::string json(static_cast<std::size_t>(header_bytes), '\0');
  if (!stream_.read(json.data(), static_cast<std::streamsize>(json.size()))) {
    refuse(file_, "ends inside its header");
  }
  const std::uint64_t data_start = length.size() + header_bytes;
  header_ = parse_safetensors_header(file_, json, size - data_start);
  header_.data_start = data_start;
}

void SafetensorsReader::read(const TensorEntry& entry, std::span<std::byte> target) {
  stream_.clear();
  stream_.seekg(static_cast<std::streamoff>(header_.data_start + entry.begin));
  if (!stream_.read(reinterpret_cast<char*>(target.data()),
                    static_cast<std::streamsize>(target.size()))) {
    refuse(file_ + ": tensor \"" + printable(entry.name, 60) + "\"", "data cannot be read");
  }
}

void write_safetensors(const ByteSink& sink, std::vector<OutputTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const OutputTensor& a, const OutputTensor& b) {
    const std::size_t a_size = size_of(a.dtype);
    const std::size_t b_size = size_of(b.dtype);
    return a_size != b_size ? a_size > b_size : a.name < b.name;
  });
  Json root = Json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const OutputTensor& tensor : tensors) {
    const std::uint64_t end = offset + tensor.data.size();
    root[tensor.name] = {{"dtype", file_name_of(tensor.dtype)},
                         {"shape", tensor.shape},
                         {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string header = root.dump();
  header.append((8 - header.size() % 8) % 8, ' ');

  const auto length = std::bit_cast<std::array<std::byte, 8>>(std::uint64_t{header.size()});
  sink(length);
  sink(std::as_bytes(std::span(header)));
  for (const OutputTensor& tensor : tensors) sink(tensor.data);
}

}  // namespace vidsparse::tools
