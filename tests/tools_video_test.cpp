// Video, pictures, quality and output files of the command: everything that needs no attention.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "atomic_file.hpp"
#include "image.hpp"
#include "process.hpp"
#include "quality.hpp"
#include "refuse.hpp"
#include "video.hpp"

#ifndef _WIN32
#include <sys/resource.h>

#include <csignal>
#endif

namespace vidsparse::tools {
namespace {

namespace fs = std::filesystem;

/// A fresh folder, removed at the end; and random content with a printed seed.
class ToolsVideo : public ::testing::Test {
 protected:
  ToolsVideo() : seed_(std::random_device{}()), random_(seed_) {
    std::printf("seed %u\n", seed_);
    folder_ = fs::temp_directory_path() / ("vidsparse-test-" + std::to_string(seed_));
    fs::create_directories(folder_);
  }
  ~ToolsVideo() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void store(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
  }
  std::string load(const std::string& name) const {
    std::ifstream file(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::ptrdiff_t files() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  /// Smooth waves, different in every frame: what an encoder keeps well.
  Clip waves(int frames, int width, int height) {
    Clip clip{frames, height, width, 25, {}};
    const double phase = pick(0, 100);
    for (int t = 0; t < frames; ++t) {
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
          for (int c = 0; c < 3; ++c) {
            clip.rgb.push_back(static_cast<std::uint8_t>(128 +
                                                         60 * std::sin(0.1 * x + 0.2 * c + phase) +
                                                         50 * std::cos(0.07 * y + 0.3 * t)));
          }
        }
      }
    }
    return clip;
  }

  unsigned seed_;
  std::mt19937 random_;
  fs::path folder_;
};

/// The message of the Error that `action` throws; "" if it throws none.
template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

void expect_refusal(const std::string& message, const std::string& argument) {
  EXPECT_EQ(message.rfind(argument + ": ", 0), 0U) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST_F(ToolsVideo, AtomicFileReplacesOnlyOnCommit) {
  store("out.txt", "old");
  {
    AtomicFile file("--out", path("out.txt"));
    file.write("new");
    EXPECT_EQ(load("out.txt"), "old");
  }
  EXPECT_EQ(load("out.txt"), "old");
  EXPECT_EQ(files(), 1);

  AtomicFile file("--out", path("out.txt"));
  file.write("new");
  file.write(" text");
  file.commit();
  EXPECT_EQ(load("out.txt"), "new text");
  EXPECT_EQ(files(), 1);
}

TEST_F(ToolsVideo, SeveralFilesAppearTogether) {
  std::vector<AtomicFile> outputs;
  outputs.emplace_back("-o", path("a.txt"));
  outputs.emplace_back("-o", path("b.txt"));
  outputs[0].write("a");
  outputs[1].write("b");
  EXPECT_FALSE(fs::exists(path("a.txt")));
  commit_all(outputs);
  EXPECT_EQ(load("a.txt") + load("b.txt"), "ab");
}

TEST_F(ToolsVideo, OutputsThatCannotBeAreRefused) {
  expect_refusal(message_of([&] { AtomicFile("--out", path("none/out.txt")); }), "--out");
  expect_refusal(message_of([&] { AtomicFile("--out", folder_); }), "--out");
  expect_refusal(message_of([&] { check_writable("--json", path("none/x.json")); }), "--json");
  EXPECT_EQ(message_of([&] { check_writable("--json", path("x.json")); }), "");
  EXPECT_EQ(files(), 0);
}

#ifdef RLIMIT_FSIZE
/// Writes past a limit fail as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST_F(ToolsVideo, FullDiskLeavesTheOldFile) {
  store("out.bin", "old");
  const std::string message = message_of([&] {
    const FullDisk full(1000);
    AtomicFile file("--out", path("out.bin"));
    file.write(std::string(5000, 'x'));
    file.commit();
  });
  expect_refusal(message, "--out");
  EXPECT_EQ(load("out.bin"), "old");
  EXPECT_EQ(files(), 1);
}

TEST_F(ToolsVideo, FullDiskWhileEncodingIsNoticed) {
  if (!program_exists("ffmpeg")) GTEST_SKIP() << "no ffmpeg on PATH";
  const Clip clip = waves(8, 64, 48);
  const std::string message = message_of([&] {
    const FullDisk full(1000);
    AtomicFile file("-o", path("out.mp4"));
    write_video("-o", file.temporary().string(), clip);
  });
  expect_refusal(message, "-o");
  EXPECT_EQ(files(), 0);
}
#endif

TEST_F(ToolsVideo, ClipSurvivesEncodingAndDecoding) {
  if (!program_exists("ffmpeg")) GTEST_SKIP() << "no ffmpeg on PATH";
  // Odd sides need another pixel format.
  for (const int odd : {0, 1}) {
    const Clip clip = waves(6, 64 + odd, 48 + odd);
    write_video("-o", path("-x.mp4"), clip);
    const Clip all = read_video("clip", path("-x.mp4"), clip.width, clip.height, 0, 100);
    ASSERT_EQ(all.frames, 6);
    EXPECT_GT(psnr(all, clip), 35);
    EXPECT_NEAR(all.frames_per_second, 25, 0.01);

    const Clip part = read_video("clip", path("-x.mp4"), clip.width, clip.height, 2, 3);
    ASSERT_EQ(part.frames, 3);
    EXPECT_TRUE(std::equal(part.rgb.begin(), part.rgb.end(), all.frame(2)));

    const Clip scaled = read_video("clip", path("-x.mp4"), 33, 17, 0, 2);
    EXPECT_EQ(scaled.rgb.size(), 2U * 33 * 17 * 3);
  }
}

TEST_F(ToolsVideo, UnreadableVideosAreRefused) {
  if (!program_exists("ffmpeg")) GTEST_SKIP() << "no ffmpeg on PATH";
  const auto read = [&](const std::string& name, int first = 0) {
    return message_of([&] { read_video("clip", path(name), 32, 32, first, 4); });
  };
  std::string noise(5000, '\0');
  for (char& byte : noise) byte = static_cast<char>(pick(0, 255));
  store("noise.mp4", noise);
  store("empty.mp4", "");
  write_video("-o", path("good.mp4"), waves(4, 32, 32));
  store("truncated.mp4", load("good.mp4").substr(0, 300));
  expect_refusal(read("none.mp4"), "clip");
  expect_refusal(read("noise.mp4"), "clip");
  expect_refusal(read("empty.mp4"), "clip");
  expect_refusal(read("truncated.mp4"), "clip");
  expect_refusal(read("good.mp4", 4), "clip");
  EXPECT_EQ(read("good.mp4", 3), "");

  // Flipped bytes inside the frames: whatever decodes is taken, nothing crashes.
  std::string damaged = load("good.mp4");
  for (int i = 0; i < 20; ++i) {
    damaged[static_cast<std::size_t>(pick(0, static_cast<int>(damaged.size()) - 1))] ^= 0x55;
  }
  store("damaged.mp4", damaged);
  const std::string message = read("damaged.mp4");
  if (!message.empty()) expect_refusal(message, "clip");
}

TEST_F(ToolsVideo, MissingProgramIsRefused) {
  EXPECT_FALSE(program_exists("no-such-program-of-ours"));
  expect_refusal(message_of([] {
                   run_reading("no-such-program-of-ours", {},
                               [](const char*, std::size_t) { return true; });
                 }),
                 "no-such-program-of-ours");
}

TEST_F(ToolsVideo, PsnrAndSsimHaveKnownValues) {
  const Clip clip = waves(2, 40, 30);
  EXPECT_TRUE(std::isinf(psnr(clip, clip)));
  EXPECT_NEAR(ssim(clip, clip), 1, 1e-12);

  Clip shifted = clip;
  for (std::uint8_t& byte : shifted.rgb) byte = static_cast<std::uint8_t>(byte + 5);
  EXPECT_NEAR(psnr(shifted, clip), 20 * std::log10(255.0 / 5), 1e-9);

  // Constant frames: only the luminance term is left.
  const double a = pick(50, 100);
  const double b = pick(150, 200);
  Clip flat_a{1, 20, 24, 25, std::vector<std::uint8_t>(20 * 24 * 3, static_cast<std::uint8_t>(a))};
  Clip flat_b{1, 20, 24, 25, std::vector<std::uint8_t>(20 * 24 * 3, static_cast<std::uint8_t>(b))};
  const double c1 = (0.01 * 255) * (0.01 * 255);
  EXPECT_NEAR(ssim(flat_a, flat_b), (2 * a * b + c1) / (a * a + b * b + c1), 1e-9);
}

TEST_F(ToolsVideo, SsimOfOneWindowIsTheFormula) {
  // An 11x11 frame has one window position: check against the definition, written out.
  Clip clips[2] = {{1, 11, 11, 25, {}}, {1, 11, 11, 25, {}}};
  for (Clip& clip : clips) {
    for (int i = 0; i < 11 * 11 * 3; ++i) {
      clip.rgb.push_back(static_cast<std::uint8_t>(pick(0, 255)));
    }
  }
  double sums[6] = {};
  for (int y = 0; y < 11; ++y) {
    for (int x = 0; x < 11; ++x) {
      const double weight = std::exp(-((x - 5.0) * (x - 5) + (y - 5.0) * (y - 5)) / 4.5);
      const double p = luma(clips[0].picture(0).at(x, y));
      const double q = luma(clips[1].picture(0).at(x, y));
      const double terms[6] = {1, p, q, p * p, q * q, p * q};
      for (int i = 0; i < 6; ++i) sums[i] += weight * terms[i];
    }
  }
  for (int i = 1; i < 6; ++i) sums[i] /= sums[0];
  const double p = sums[1];
  const double q = sums[2];
  const double c1 = 6.5025;
  const double c2 = 58.5225;
  const double expected = (2 * p * q + c1) * (2 * (sums[5] - p * q) + c2) /
                          ((p * p + q * q + c1) * (sums[3] - p * p + sums[4] - q * q + c2));
  EXPECT_NEAR(ssim(clips[0], clips[1]), expected, 1e-9);
}

TEST_F(ToolsVideo, PicturesDrawInsideTheirBorders) {
  Image image(20, 10, {1, 2, 3});
  image.outline(-3, -3, 30, 30, 2, {9, 9, 9});
  image.outline(5, 4, 3, 2, 1, {7, 7, 7});
  EXPECT_EQ(image.at(4, 6), (Colour{7, 7, 7}));
  EXPECT_EQ(image.at(5, 4), (Colour{1, 2, 3})) << "an outline leaves its box alone";
  image.text(-4, -4, "wide text", 2, {200, 0, 0});
  image.paste(Image(50, 50, {4, 4, 4}), 15, 5);
  EXPECT_EQ(image.at(19, 9), (Colour{4, 4, 4}));
  EXPECT_EQ(enlarge(image, 3).at(59, 29), (Colour{4, 4, 4}));
  EXPECT_EQ(encode_png(image).substr(1, 3), "PNG");
  EXPECT_GT(text_width("vidsparse", 2), text_width("vid", 2));
}

TEST_F(ToolsVideo, HeatGrowsBrighter) {
  for (int i = 1; i <= 100; ++i)
    EXPECT_GT(luma(heat(i / 100.0)), luma(heat((i - 1) / 100.0)) - 0.5);
  EXPECT_EQ(heat(-1), heat(0));
  EXPECT_EQ(heat(2), heat(1));
}

TEST_F(ToolsVideo, Base64) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("v"), "dg==");
  EXPECT_EQ(base64("vi"), "dmk=");
  EXPECT_EQ(base64("vid"), "dmlk");
  EXPECT_EQ(base64(std::string("\xff\x00\xfe", 3)), "/wD+");
}

}  // namespace
}  // namespace vidsparse::tools
