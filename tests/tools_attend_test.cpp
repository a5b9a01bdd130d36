// `vidsparse attend` as a user runs it: what it writes, and every bad input refused with one line,
// exit code 2 and existing outputs untouched.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "tools_command.hpp"

namespace vidsparse::tools {
namespace {

constexpr const char* kGrid = "--grid 5x6x7 ";
constexpr std::int64_t kTokens = 210;

class AttendCommand : public ::testing::Test {
 protected:
  AttendCommand() : seed_(std::random_device()()) {
    std::printf("seed %u\n", seed_);
    write(DType::bf16, {});
    write_text(out(), kOld);
  }

  /// q, k, v of `dtype`, and whatever else.
  void write(DType dtype, std::vector<RandomTensor> more) {
    const std::vector<std::int64_t> shape{1, kTokens, 2, 64};
    std::vector<RandomTensor> tensors{
        {"q", dtype, shape}, {"k", dtype, shape}, {"v", dtype, shape}};
    tensors.insert(tensors.end(), more.begin(), more.end());
    write_random_safetensors(in(), tensors, seed_);
  }

  std::string in() const { return folder_.file("in.safetensors"); }
  std::string out() const { return folder_.file("out.safetensors"); }

  CommandResult attend(const std::string& options, const std::string& setup = {}) const {
    return run_command("attend \"" + in() + "\" --out \"" + out() + "\" " + options, setup);
  }

  /// One line naming `argument`, exit code 2, nothing changed and nothing left behind.
  void expect_refused(const CommandResult& result, const std::string& argument) const {
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.error_lines(), 1) << result.errors;
    EXPECT_NE(result.errors.find(argument), std::string::npos) << result.errors;
    EXPECT_EQ(result.output, "");
    EXPECT_TRUE(read_text(out()) == kOld) << "the output was touched";
    for (const std::string& name : folder_.names()) {
      EXPECT_TRUE(name == "in.safetensors" || name == "out.safetensors") << name;
    }
  }

  void expect_refused(const std::string& options, const std::string& argument) const {
    SCOPED_TRACE(options);
    expect_refused(attend(options), argument);
  }

  static constexpr const char* kOld = "what was there before";
  unsigned seed_;
  TemporaryFolder folder_;
};

TEST_F(AttendCommand, WritesWhatTheCheckAccepts) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    write(dtype, {});
    const CommandResult result =
        attend(std::string(kGrid) + "--sparsity 0.7 --check --selection-map");
    ASSERT_EQ(result.exit_code, 0) << result.errors << result.output;
    EXPECT_EQ(result.errors, "");
    EXPECT_NE(result.output.find("out"), std::string::npos);
    EXPECT_NE(result.output.find("deviation from dense"), std::string::npos) << result.output;

    SafetensorsReader reader(out());
    const TensorEntry* written = reader.header().find("out");
    ASSERT_NE(written, nullptr);
    EXPECT_EQ(written->shape, (std::vector<std::int64_t>{1, kTokens, 2, 64}));
    EXPECT_EQ(written->dtype, dtype);
    EXPECT_EQ(reader.header().find("lse")->to_string(), "[1, 2, 210] F32");
    // 2 x 2 x 2 tiles of 4x4x4.
    EXPECT_EQ(reader.header().find("selection")->to_string(), "[1, 2, 8, 2] I64");
    EXPECT_EQ(reader.header().find("selection_map")->to_string(), "[1, 2, 8, 8] U8");
  }
}

TEST_F(AttendCommand, MapAndBitmapAgreeAndRowsHaveExactlyK) {
  ASSERT_EQ(attend(std::string(kGrid) + "--top-k 3 --selection-map").exit_code, 0);
  const std::vector<std::byte> bitmap = read_tensor(out(), "selection");
  const std::vector<std::byte> map = read_tensor(out(), "selection_map");
  ASSERT_EQ(map.size(), 2U * 8 * 8);
  for (std::size_t row = 0; row < 2 * 8; ++row) {
    std::uint64_t words[2];
    std::memcpy(words, bitmap.data() + row * sizeof words, sizeof words);
    int kept = 0;
    for (std::size_t tile = 0; tile < 8; ++tile) {
      const auto bit = (words[0] >> tile) & 1U;
      EXPECT_EQ(bit, static_cast<std::uint64_t>(map[row * 8 + tile]));
      kept += static_cast<int>(bit);
    }
    EXPECT_EQ(kept, 3);
    EXPECT_EQ(words[0] >> 8, 0U);
    EXPECT_EQ(words[1], 0U);
  }
}

TEST_F(AttendCommand, AnyNumberOfThreadsGivesTheSameBytes) {
  ASSERT_EQ(attend(std::string(kGrid) + "--top-k 3 --threads 1").exit_code, 0);
  const std::string one = read_text(out());
  ASSERT_EQ(attend(std::string(kGrid) + "--top-k 3 --threads 3").exit_code, 0);
  EXPECT_EQ(read_text(out()), one);
}

TEST_F(AttendCommand, MayReplaceItsInput) {
  const CommandResult result =
      run_command("attend \"" + in() + "\" --out \"" + in() + "\" " + kGrid + "--sparsity 0.5");
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_FALSE(read_tensor(in(), "out").empty());
}

TEST_F(AttendCommand, GatePrefixAndModes) {
  const std::vector<std::int64_t> shape{1, kTokens, 2, 64};
  write(DType::f32, {{"gate", DType::f32, shape}});
  const std::string rest = "--sparsity 0.6 --check";
  for (const std::string& options :
       {std::string(kGrid), std::string(kGrid) + "--gate none ", std::string(kGrid) + "--gate 1.0 ",
        std::string("--grid 5x6x6 --prefix 30,0 "),
        std::string("--grid 5x6x6 --prefix 30 --prefix-mode compete --backend cpu "),
        std::string("--grid 1x10x21 --tile 1x8x8 --backend reference --scale 0.2 ")}) {
    const CommandResult result = attend(options + rest);
    EXPECT_EQ(result.exit_code, 0) << options << result.errors << result.output;
  }
}

TEST_F(AttendCommand, RefusesBadOptions) {
  const std::string rest = std::string(kGrid) + "--sparsity 0.5 ";
  expect_refused("--sparsity 0.5", "--grid");
  expect_refused(kGrid, "--sparsity");
  expect_refused(rest + "--top-k 2", "--top-k");
  for (const char* sparsity : {"1", "1.5", "-0.1", "nan", "inf", "abc", "\"\""}) {
    expect_refused(std::string(kGrid) + "--sparsity " + sparsity, "--sparsity");
  }
  for (const char* top_k : {"0", "-1", "9", "99999999999999999999", "2.5", "x"}) {
    expect_refused(std::string(kGrid) + "--top-k " + top_k, "--top-k");
  }
  for (const char* tile :
       {"4x4x3", "4x4", "0x8x8", "3x3x3", "9223372036854775807x4x4", "4294967296x4294967296x64"}) {
    expect_refused(rest + "--tile " + tile, "--tile");
  }
  for (const char* grid :
       {"5x6", "5x6x8", "9223372036854775807x2x2", "4294967296x4294967296x4", "-5x6x7", "a"}) {
    expect_refused(std::string("--sparsity 0.5 --grid ") + grid, "--grid");
  }
  expect_refused(rest + "--prefix 1,-2", "--prefix");
  expect_refused(rest + "--prefix-mode never", "--prefix-mode");
  expect_refused(rest + "--prefix 9223372036854775807", "--grid");
  expect_refused(rest + "--gate much", "--gate");
  expect_refused(rest + "--gate inf", "--gate");
  expect_refused(rest + "--scale nan", "--scale");
  expect_refused(rest + "--backend nonsense", "--backend");
  expect_refused(rest + "--threads -1", "--threads");
  expect_refused(rest + "--nonsense", "--nonsense");
}

TEST_F(AttendCommand, RefusesBadTensors) {
  const std::string options = std::string(kGrid) + "--sparsity 0.5";
  const std::vector<std::int64_t> shape{1, kTokens, 2, 64};
  const std::vector<std::int64_t> other{1, kTokens, 2, 32};
  const auto expect_input_refused = [&](const std::vector<RandomTensor>& tensors,
                                        const std::string& named) {
    SCOPED_TRACE(named);
    write_random_safetensors(in(), tensors, seed_);
    expect_refused(attend(options), named);
  };
  expect_input_refused({{"q", DType::f32, shape}, {"k", DType::f32, shape}}, "\"v\"");
  expect_input_refused(
      {{"q", DType::i32, shape}, {"k", DType::i32, shape}, {"v", DType::i32, shape}}, "\"q\"");
  expect_input_refused(
      {{"q", DType::f32, shape}, {"k", DType::bf16, shape}, {"v", DType::f32, shape}}, "\"k\"");
  expect_input_refused(
      {{"q", DType::f32, shape}, {"k", DType::f32, shape}, {"v", DType::f32, other}}, "\"v\"");
  expect_input_refused(
      {{"q", DType::f32, {1, kTokens, 128}}, {"k", DType::f32, shape}, {"v", DType::f32, shape}},
      "\"q\"");
  expect_input_refused({{"q", DType::f32, shape},
                        {"k", DType::f32, {1, kTokens, 3, 64}},
                        {"v", DType::f32, {1, kTokens, 3, 64}}},
                       "heads_kv");
  write(DType::f32, {{"gate", DType::f32, other}});
  expect_refused(attend(options), "\"gate\"");
  write(DType::f32, {{"gate", DType::bf16, shape}});
  expect_refused(attend(options), "\"gate\"");
  // Enough to overflow every product of sides; no data behind it.
  write_random_safetensors(in(), {{"q", DType::f32, {0, std::int64_t{1} << 62, 1, 1}}}, seed_);
  expect_refused(attend(options), "in.safetensors");
}

TEST_F(AttendCommand, RefusesBrokenFiles) {
  const std::string options = std::string(kGrid) + "--sparsity 0.5";
  const std::string whole = read_text(in());
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{60},
                                   whole.size() / 2, whole.size() - 1}) {
    write_text(in(), whole.substr(0, length));
    expect_refused(attend(options), "in.safetensors");
  }
  write_text(in(), whole + "x");
  expect_refused(attend(options), "in.safetensors");
  write_text(in(), "not a safetensors file at all");
  expect_refused(attend(options), "in.safetensors");
  std::filesystem::remove(in());
  expect_refused(attend(options), "in.safetensors");
}

TEST_F(AttendCommand, RefusesOutputsItCannotWrite) {
  const std::string options = std::string(kGrid) + "--sparsity 0.5";
  const auto attend_to = [&](const std::string& path) {
    return run_command("attend \"" + in() + "\" --out \"" + path + "\" " + options);
  };
  expect_refused(attend_to(folder_.file("missing/out.safetensors")), "--out");
  expect_refused(attend_to(folder_.file("")), "--out");
  expect_refused(run_command("attend \"" + in() + "\" " + options), "--out");
#ifndef _WIN32
  expect_refused(attend_to("/dev/full"), "--out");
  // Blocks of 512 bytes: the file is larger, so that the write fails as on a full disk.
  expect_refused(attend(options, "ulimit -f 16; "), "--out");
#endif
}

}  // namespace
}  // namespace vidsparse::tools
