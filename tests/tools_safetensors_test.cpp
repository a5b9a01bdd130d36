#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "safetensors.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::tools {
namespace {

namespace fs = std::filesystem;

/// A file in the temporary folder that goes away with the test.
class TemporaryFile {
 public:
  TemporaryFile()
      : path_(fs::temp_directory_path() /
              ("vidsparse-" + std::to_string(std::random_device()()) + ".safetensors")) {}
  ~TemporaryFile() { fs::remove(path_); }
  const fs::path& path() const { return path_; }

  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  fs::path path_;
};

std::string file_bytes(const std::string& header, std::size_t data_bytes) {
  const auto length = std::bit_cast<std::array<char, 8>>(std::uint64_t{header.size()});
  return std::string(length.begin(), length.end()) + header + std::string(data_bytes, 'x');
}

/// The message with which a header is refused; empty if it is accepted.
std::string refusal(const std::string& header, std::uint64_t data_bytes) {
  try {
    parse_safetensors_header("in.safetensors", header, data_bytes);
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("in.safetensors", 0), 0U) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"q":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  const SafetensorsHeader header = parse_safetensors_header(
      "f",
      R"({"__metadata__":{"format":"pt"},)"
      R"("b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},)"
      R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("e":{"dtype":"F8_E4M3","shape":[0,7],"data_offsets":[12,12]}}   )",
      16);
  ASSERT_EQ(header.entries.size(), 3U);
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_EQ(header.entries[1].name, "e");
  EXPECT_EQ(header.entries[2].name, "b");
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.find("a")->dtype, DType::bf16);
  EXPECT_EQ(header.find("a")->to_string(), "[2, 3] BF16");
  EXPECT_EQ(header.find("e")->dtype, std::nullopt);
  EXPECT_EQ(header.find("c"), nullptr);
  EXPECT_EQ(refusal("{}", 0), "");
}

TEST(SafetensorsHeader, RefusesMalformedJson) {
  for (const char* text :
       {"", "[]", " {}", "{", R"({"q":})", "{}x", R"({"q":{}})", R"({"q":1})", "{\"\xff\":1}",
        R"({"__metadata__":{"a":1}})", R"({"__metadata__":[]})"}) {
    EXPECT_NE(refusal(text, 0), "") << text;
  }
  // Depth alone must not cost stack or memory.
  EXPECT_NE(refusal("{\"q\":" + std::string(1'000'000, '['), 0), "");
}

TEST(SafetensorsHeader, RefusesAKeyGivenTwice) {
  EXPECT_NE(refusal(R"({"q":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                    R"("q":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                    1)
                .find("twice"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"q":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
            "");
}

TEST(SafetensorsHeader, RefusesBadEntries) {
  EXPECT_EQ(refusal(tensor("F32", "[2]", "[0,8]"), 8), "");
  for (const auto& [dtype, shape, offsets] : {
           std::array<const char*, 3>{"F33", "[2]", "[0,8]"},
           {"F32", "2", "[0,8]"},
           {"F32", "[-2]", "[0,8]"},
           {"F32", "[2.0]", "[0,8]"},
           {"F32", "[\"2\"]", "[0,8]"},
           {"F32", "[3]", "[0,8]"},
           {"F32", "[2]", "[0,9]"},
           {"F32", "[2]", "[8,0]"},
           {"F32", "[2]", "[0]"},
           {"F32", "[2]", "[-8,0]"},
           {"F32", "[2]", "[1,9]"},
           {"F32", "[4611686018427387904,4]", "[0,8]"},
           {"F32", "[18446744073709551615]", "[0,8]"},
           {"F32", "[18446744073709551617]", "[0,8]"},
           {"F32", "[4294967296,4294967296,0]", "[0,0]"},
       }) {
    const std::string message = refusal(tensor(dtype, shape, offsets), 8);
    EXPECT_NE(message.find("tensor \"q\""), std::string::npos)
        << dtype << shape << offsets << message;
  }
  EXPECT_NE(refusal(R"({"q":{"dtype":"F32","shape":[2]}})", 8), "");
  EXPECT_NE(refusal(R"({"q":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8), "");
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndTrailingData) {
  const auto two = [](int first, int second) {
    const auto entry = [](const char* name, int begin) {
      return std::string("\"") + name + R"(":{"dtype":"U8","shape":[4],"data_offsets":[)" +
             std::to_string(begin) + "," + std::to_string(begin + 4) + "]}";
    };
    return "{" + entry("a", first) + "," + entry("b", second) + "}";
  };
  EXPECT_EQ(refusal(two(0, 4), 8), "");
  EXPECT_EQ(refusal(two(4, 0), 8), "");
  EXPECT_NE(refusal(two(0, 5), 9), "");
  EXPECT_NE(refusal(two(0, 3), 7), "");
  EXPECT_NE(refusal(two(0, 0), 4), "");
  EXPECT_NE(refusal(two(0, 4), 9), "");
  EXPECT_NE(refusal("{}", 1), "");
}

TEST(SafetensorsReader, RefusesFilesThatLieAboutTheirHeader) {
  const TemporaryFile file;
  EXPECT_THROW(SafetensorsReader(file.path()), Error);
  EXPECT_THROW(SafetensorsReader(fs::temp_directory_path()), Error);
  const std::string good = file_bytes(tensor("U8", "[4]", "[0,4]"), 4);
  for (std::size_t length = 0; length < good.size(); ++length) {
    file.write(good.substr(0, length));
    EXPECT_THROW(SafetensorsReader(file.path()), Error) << "truncated to " << length;
  }
  file.write(good);
  EXPECT_NO_THROW(SafetensorsReader(file.path()));
  for (const std::uint64_t claim : {std::uint64_t{1} << 40, ~std::uint64_t{0}, std::uint64_t{7}}) {
    std::string lie = good;
    std::memcpy(lie.data(), &claim, sizeof claim);
    file.write(lie);
    EXPECT_THROW(SafetensorsReader(file.path()), Error) << "header of " << claim;
  }
}

TEST(SafetensorsReader, NoticesAFileThatShrinksWhileOpen) {
  const TemporaryFile file;
  file.write(file_bytes(tensor("U8", "[100000]", "[0,100000]"), 100000));
  SafetensorsReader reader(file.path());
  fs::resize_file(file.path(), 1000);
  std::vector<std::byte> data(100000);
  EXPECT_THROW(reader.read(*reader.header().find("q"), data), Error);
}

TEST(Safetensors, ReadsBackWhatItWrites) {
  const unsigned seed = std::random_device()();
  RecordProperty("seed", static_cast<int>(seed));
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);

  constexpr std::array<DType, 7> kTypes{DType::f64, DType::f32, DType::f16, DType::bf16,
                                        DType::i32, DType::i64, DType::u8};
  std::vector<std::vector<std::byte>> contents;
  std::vector<OutputTensor> tensors;
  contents.reserve(kTypes.size());
  for (const DType dtype : kTypes) {
    const std::int64_t rows = random() % 4;
    const std::int64_t columns = 1 + random() % 9;
    std::vector<std::byte>& data =
        contents.emplace_back(static_cast<std::size_t>(rows * columns) * size_of(dtype));
    for (std::byte& byte : data) byte = static_cast<std::byte>(random() & 0xffU);
    tensors.push_back({name_of(dtype), dtype, {rows, columns}, data});
  }
  const TemporaryFile file;
  {
    std::ofstream stream(file.path(), std::ios::binary);
    write_safetensors(
        [&](std::span<const std::byte> bytes) {
          stream.write(reinterpret_cast<const char*>(bytes.data()),
                       static_cast<std::streamsize>(bytes.size()));
        },
        tensors, {{"made", "by a test"}});
  }

  SafetensorsReader reader(file.path());
  EXPECT_EQ(reader.header().metadata.at("made"), "by a test");
  EXPECT_EQ(reader.header().data_start % 8, 0U);
  ASSERT_EQ(reader.header().entries.size(), tensors.size());
  for (const OutputTensor& tensor : tensors) {
    const TensorEntry* entry = reader.header().find(tensor.name);
    ASSERT_NE(entry, nullptr) << tensor.name;
    EXPECT_EQ(entry->dtype, tensor.dtype);
    EXPECT_EQ(entry->shape, tensor.shape);
    EXPECT_EQ(entry->begin % size_of(tensor.dtype), 0U) << tensor.name;
    std::vector<std::byte> data(entry->bytes());
    reader.read(*entry, data);
    EXPECT_TRUE(std::equal(data.begin(), data.end(), tensor.data.begin(), tensor.data.end()))
        << tensor.name;
  }
}

}  // namespace
}  // namespace vidsparse::tools
