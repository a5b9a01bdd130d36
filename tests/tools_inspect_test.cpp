// The selection's statistics and pictures, and `denoise` and `inspect` from end to end.

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "atomic_file.hpp"
#include "inspection.hpp"
#include "process.hpp"
#include "quality.hpp"
#include "selection_statistics.hpp"
#include "tools_command.hpp"
#include "video.hpp"
#include "window_denoiser.hpp"

namespace vidsparse::tools {
namespace {

class ToolsInspect : public ::testing::Test {
 protected:
  ToolsInspect() : seed_(std::random_device{}()), random_(seed_) {
    std::printf("seed %u\n", seed_);
  }
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  /// Stripes and a disc that moves: something a selection can find again.
  Clip scene(int frames, int width, int height) {
    Clip clip{frames, height, width, 25, {}};
    for (int t = 0; t < frames; ++t) {
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
          const bool disc = std::hypot(x - width / 3.0 - t, y - height / 2.0) < height / 5.0;
          const int stripe = (x / 6) % 2 == 0 ? 60 : 180;
          for (int c = 0; c < 3; ++c) {
            clip.rgb.push_back(static_cast<std::uint8_t>(disc ? 230 - 40 * c : stripe + 10 * c));
          }
        }
      }
    }
    return clip;
  }

  std::string store(const TemporaryFolder& folder, const Clip& clip) {
    const std::string path = folder.file("clip.mp4");
    write_video("clip", path, clip);
    return path;
  }

  unsigned seed_;
  std::mt19937 random_;
};

const Overlap& find(const HeadStatistics& statistics, const std::string& along, int group) {
  for (const Overlap& overlap : statistics.overlaps) {
    if (overlap.along == along && overlap.group == group) return overlap;
  }
  throw std::runtime_error("no overlap along " + along);
}

TEST_F(ToolsInspect, StatisticsAgreeWithSets) {
  // Text before the video: its tiles must not count. One query tile chose text alone.
  const TileLayout layout(Sequence({Plain{100}, Video{6, 11, 9}}), {4, 4, 4});
  const TileGrid grid = video_tiles(layout);
  ASSERT_EQ(grid.size, (std::array<std::int64_t, 3>{2, 3, 3}));
  ASSERT_EQ(grid.first, 2);
  ASSERT_EQ(grid.first + grid.tiles(), layout.tiles());
  TileMask mask(MaskShape{1, 2, layout.tiles(), layout.tiles()});
  const std::int64_t without = grid.first + pick(0, 17);
  for (std::int64_t query = 0; query < layout.tiles(); ++query) {
    for (std::int64_t key = 0; key < layout.tiles(); ++key) {
      if (key < 2 || (query != without && pick(0, 2) == 0)) mask.set(0, 1, query, key);
    }
  }
  const HeadStatistics statistics = head_statistics(mask.view(), grid, 0, 1);

  const auto list = [&](std::int64_t query) {
    std::set<std::int64_t> keys;
    for (std::int64_t key = grid.first; key < layout.tiles(); ++key) {
      if (mask.view().test(0, 1, query, key)) keys.insert(key);
    }
    return keys;
  };
  double length = 0;
  for (std::int64_t q = grid.first; q < layout.tiles(); ++q) {
    length += static_cast<double>(list(q).size()) / 18;
  }
  EXPECT_NEAR(statistics.list_length, length, 1e-9);

  // Three neighbours along h, by sets.
  double common = 0;
  double all = 0;
  double lengths = 0;
  for (std::int64_t t = 0; t < 2; ++t) {
    for (std::int64_t w = 0; w < 3; ++w) {
      std::map<std::int64_t, int> seen;
      for (std::int64_t h = 0; h < 3; ++h) {
        for (const std::int64_t key : list(grid.index(t, h, w))) ++seen[key];
        lengths += static_cast<double>(list(grid.index(t, h, w)).size()) / 3;
      }
      all += static_cast<double>(seen.size());
      for (const auto& [key, count] : seen) common += count == 3 ? 1 : 0;
    }
  }
  const Overlap& overlap = find(statistics, "h", 3);
  EXPECT_EQ(overlap.groups, 6);
  EXPECT_NEAR(overlap.common, common / lengths, 1e-9);
  EXPECT_NEAR(overlap.all, all / lengths, 1e-9);
  EXPECT_EQ(find(statistics, "hw", 4).groups, 2 * 2 * 2);
  EXPECT_EQ(find(statistics, "order", 4).groups, 15);

  for (const DistanceHistogram& histogram : statistics.distances) {
    double chosen = 0;
    double blind = 0;
    for (std::size_t d = 0; d < histogram.chosen.size(); ++d) {
      chosen += histogram.chosen[d];
      blind += histogram.blind[d];
    }
    EXPECT_NEAR(chosen, 1, 1e-9);
    EXPECT_NEAR(blind, 1, 1e-9);
  }
}

TEST_F(ToolsInspect, StatisticsOfNoChoiceAreZero) {
  const TileLayout layout(Sequence::grid({4, 8, 8}), {4, 4, 4});
  const TileMask mask(MaskShape{1, 1, layout.tiles(), layout.tiles()});
  const HeadStatistics statistics = head_statistics(mask.view(), video_tiles(layout), 0, 0);
  EXPECT_EQ(statistics.list_length, 0);
  EXPECT_EQ(statistics.own_share, 0);
  for (const DistanceHistogram& histogram : statistics.distances) {
    for (const double share : histogram.chosen) EXPECT_EQ(share, 0);
    EXPECT_EQ(histogram.mean, 0);
  }
  for (const Overlap& overlap : statistics.overlaps) {
    EXPECT_EQ(overlap.common, 0);
    EXPECT_EQ(overlap.all, 0);
  }
}

TEST_F(ToolsInspect, IdenticalListsOverlapWholly) {
  const TileLayout layout(Sequence::grid({4, 16, 16}), {4, 4, 4});
  TileMask mask(MaskShape{1, 1, 16, 16});
  for (std::int64_t query = 0; query < 16; ++query) {
    for (const std::int64_t key : {2, 3, 7}) mask.set(0, 0, query, key);
  }
  const HeadStatistics statistics = head_statistics(mask.view(), video_tiles(layout), 0, 0);
  for (const Overlap& overlap : statistics.overlaps) {
    EXPECT_DOUBLE_EQ(overlap.common, 1);
    EXPECT_DOUBLE_EQ(overlap.all, 1);
  }
  EXPECT_DOUBLE_EQ(statistics.own_share, 3.0 / 16);
}

TEST_F(ToolsInspect, WindowsOfAnySizeAreDenoised) {
  // Odd sides: ragged tiles everywhere.
  const Clip clean = scene(pick(1, 5), pick(30, 45), pick(20, 30));
  const Clip noisy = add_noise(clean, 20, seed_);
  WindowDenoiser denoiser(clean.frames, clean.height, clean.width, {4, 4, 4}, {});
  Selection selection;
  selection.top_k = 4;
  for (const PooledKeys keys : {PooledKeys::mean_norm, PooledKeys::pooled}) {
    DenoiseTimes times;
    const Frames result =
        denoiser.run(to_frames(noisy, 0, noisy.frames), 20, selection, keys, times);
    Blender blender(WindowSchedule(clean.frames, clean.frames, 0), clean.height, clean.width);
    blender.add(0, result);
    EXPECT_GT(psnr(blender.clip(25), clean), psnr(noisy, clean) + 1);
    const TileMaskView mask = denoiser.mask().view();
    for (std::int64_t tile = 0; tile < mask.shape.query_tiles; ++tile) {
      EXPECT_TRUE(mask.test(0, 0, tile, tile)) << "own tile " << tile;
      const std::int64_t chosen = count_set(mask.row(0, 0, tile), mask.shape.row_words());
      EXPECT_TRUE(chosen == 4 || chosen == 5) << chosen;
    }
  }
}

TEST_F(ToolsInspect, CommandDenoisesAClip) {
  if (!program_exists("ffmpeg")) GTEST_SKIP() << "no ffmpeg on PATH";
  const TemporaryFolder folder;
  const std::string clip = store(folder, scene(7, 64, 48));
  const std::string out = folder.file("out.mp4");
  const CommandResult result =
      run_command("denoise " + clip + " -o " + out + " --size 51x37 --frames 6 --top-k 20 --json " +
                  folder.file("report.json"));
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const Clip written = read_video("out", out, 51, 37, 0, 100);
  EXPECT_EQ(written.frames, 6);
  const auto report = nlohmann::json::parse(read_text(folder.file("report.json")));
  EXPECT_GT(report["denoised"]["psnr"].get<double>(), report["noisy"]["psnr"].get<double>());
  EXPECT_EQ(report["top_k"], 20);
  const std::string page = read_text(folder.file("out_inspect/index.html"));
  EXPECT_NE(page.find("data:image/png;base64,"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos) << "the page shall need nothing else";
  EXPECT_EQ(read_text(folder.file("out_inspect/selection.png")).substr(1, 3), "PNG");
}

TEST_F(ToolsInspect, CommandInspectsTensors) {
  const TemporaryFolder folder;
  const std::string file = folder.file("qk.safetensors");
  write_random_safetensors(
      file, {{"q", DType::bf16, {1, 7 + 5 * 9 * 10, 4, 64}}, {"k", DType::bf16, {1, 457, 2, 64}}},
      seed_);
  const std::string out = folder.file("page");
  const CommandResult result =
      run_command("inspect " + file + " --grid 5x9x10 --prefix 7 --top-k 5 --head 3 -o " + out +
                  " --query-tile 1,2,0 --query-tile 3");
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto json = nlohmann::json::parse(read_text(out + "/statistics.json"));
  ASSERT_EQ(json["heads"].size(), 4U);
  EXPECT_NEAR(json["heads"][3]["list_length"].get<double>(), 5, 1e-9);
}

TEST_F(ToolsInspect, BadInputIsRefusedInOneLine) {
  if (!program_exists("ffmpeg")) GTEST_SKIP() << "no ffmpeg on PATH";
  const TemporaryFolder folder;
  const std::string clip = store(folder, scene(4, 32, 32));
  const std::string out = folder.file("old.mp4");
  write_text(out, "old");
  write_text(folder.file("noise.mp4"), "no video at all");
  write_text(folder.file("empty.mp4"), "");
  write_text(folder.file("bad.safetensors"), "12345678");
  write_random_safetensors(folder.file("k.safetensors"), {{"k", DType::bf16, {1, 64, 1, 64}}},
                           seed_);
  const auto names = folder.names();
  const std::string denoise = "denoise " + clip + " -o " + out + " --size 32x32 ";
  const std::vector<std::pair<std::string, std::string>> cases{
      {"denoise " + folder.file("none.mp4") + " -o " + out, "clip"},
      {"denoise " + folder.file("noise.mp4") + " -o " + out, "clip"},
      {"denoise " + folder.file("empty.mp4") + " -o " + out, "clip"},
      {denoise + "--tile 3x3x3", "--tile"},
      {denoise + "--sparsity 1", "--sparsity"},
      {denoise + "--sparsity=-0.5", "--sparsity"},
      {denoise + "--top-k 100000", "--top-k"},
      {denoise + "--size 0x10", "--size"},
      {denoise + "--size 99999999x10", "--size"},
      {denoise + "--frames 0", "--frames"},
      {denoise + "--overlap 4", "--overlap"},
      {denoise + "--selection best", "--selection"},
      {denoise + "--json " + folder.file("none/x.json"), "--json"},
      {denoise + "--pictures " + folder.file("empty.mp4"), "--pictures"},
      {"denoise " + clip + " -o " + folder.file("none/out.mp4"), "--output"},
      {"inspect " + clip + " -o " + folder.file("empty.mp4"), "--out"},
      {"inspect " + clip + " --size 32x32 --query-tile 9,9,9 -o " + folder.file("page"),
       "--query-tile"},
      {"inspect " + folder.file("bad.safetensors") + " --grid 1x8x8 -o " + folder.file("page"),
       "bad.safetensors"},
      {"inspect " + folder.file("k.safetensors") + " --grid 1x8x8 -o " + folder.file("page"),
       "\"q\""},
      {"inspect " + folder.file("k.safetensors") + " -o " + folder.file("page"), "--grid"},
  };
  for (const auto& [arguments, named] : cases) {
    const CommandResult result = run_command(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_EQ(result.error_lines(), 1) << arguments << "\n" << result.errors;
    EXPECT_NE(result.errors.find(named), std::string::npos) << arguments << "\n" << result.errors;
  }
  const CommandResult no_ffmpeg = run_command(denoise, "PATH=/nowhere; ");
  EXPECT_EQ(no_ffmpeg.exit_code, 2);
  EXPECT_NE(no_ffmpeg.errors.find("ffmpeg"), std::string::npos) << no_ffmpeg.errors;
  const CommandResult full_disk = run_command(denoise, "ulimit -f 1; ");
  EXPECT_EQ(full_disk.exit_code, 2) << full_disk.errors;
  EXPECT_EQ(full_disk.error_lines(), 1) << full_disk.errors;
  EXPECT_EQ(read_text(out), "old");
  EXPECT_EQ(folder.names(), names);
}

}  // namespace
}  // namespace vidsparse::tools
