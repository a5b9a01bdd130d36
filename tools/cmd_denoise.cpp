#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "clip_options.hpp"
#include "commands.hpp"
#include "denoise_run.hpp"
#include "inspect_picture.hpp"
#include "inspection.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "refuse.hpp"
#include "text.hpp"
#include "video.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::ordered_json;

struct DenoiseOptions {
  ClipOptions clip;
  RunOptions run;
  std::string output;
  std::string json;
  std::string pictures;
  int first = 0;
  int frames = 16;
  int overlap = 1;
  bool compare = false;
  bool no_pictures = false;

  std::filesystem::path picture_folder() const {
    if (!pictures.empty()) return pictures;
    const std::filesystem::path out = output;
    return out.parent_path() / (out.stem().string() + "_inspect");
  }
};

class Timer {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Json to_json(const Quality& quality) { return {{"psnr", quality.psnr}, {"ssim", quality.ssim}}; }

Json to_json(const DenoiseTimes& times) {
  return {{"features", times.features}, {"pool", times.pool},       {"select", times.select},
          {"attend", times.attend},     {"average", times.average}, {"total", times.total()}};
}

void print_quality(const char* name, const Quality& quality) {
  std::printf("  %-10s PSNR %6.2f dB   SSIM %.4f\n", name, quality.psnr, quality.ssim);
}

void print_times(const DenoiseTimes& times) {
  std::printf("features %.2f s, pool %.2f s, select %.2f s, attend %.2f s, patches %.2f s\n",
              times.features, times.pool, times.select, times.attend, times.average);
}

Json print_comparison(const Comparison& comparison) {
  std::printf("dense against sparse on one window of %dx%d, %d frames:\n", comparison.clean.width,
              comparison.clean.height, comparison.clean.frames);
  print_quality("noisy", comparison.noisy);
  print_quality("dense", comparison.dense);
  print_quality("sparse", comparison.sparse);
  const double dense = comparison.dense_times.select + comparison.dense_times.attend;
  const double sparse = comparison.sparse_times.pool + comparison.sparse_times.select +
                        comparison.sparse_times.attend;
  std::printf("  attention: dense %.2f s, sparse %.2f s (%.1fx faster)\n", dense, sparse,
              dense / sparse);
  return {{"width", comparison.clean.width},
          {"height", comparison.clean.height},
          {"frames", comparison.clean.frames},
          {"noisy", to_json(comparison.noisy)},
          {"dense", to_json(comparison.dense)},
          {"sparse", to_json(comparison.sparse)},
          {"dense_seconds", to_json(comparison.dense_times)},
          {"sparse_seconds", to_json(comparison.sparse_times)}};
}

/// The pages of `inspect` for the last window, whose selection the denoiser still holds.
std::vector<PageFile> make_pictures(const DenoiseOptions& options, const WindowDenoiser& denoiser,
                                    const Clip& clean, const Clip& noisy,
                                    const DenoiseResult& result) {
  const Plan& plan = denoiser.plan();
  Inspection inspection;
  inspection.title =
      "vidsparse denoise " + std::filesystem::path(options.clip.path).filename().string();
  inspection.subtitle = plan.problem().query.to_string() + ", tiles of " + options.clip.tile +
                        " pixels, " + options.clip.selection_text() + ", the clip's last window";
  inspection.tile = plan.problem().tile;
  inspection.grid = video_tiles(plan.query_layout());
  inspection.mask = denoiser.mask().view();
  inspection.pooled_queries = denoiser.pooled_queries().ref;
  inspection.pooled_keys = denoiser.pooled_keys().ref;
  const int window = std::min(options.clip.window, clean.frames);
  inspection.frames = clean;
  inspection.frames.rgb.assign(clean.frame(clean.frames - window),
                               clean.rgb.data() + clean.rgb.size());
  inspection.frames.frames = window;
  inspection.query_tiles = interesting_tiles(inspection);
  const Exhibit comparison{
      "denoised.png", "The middle of the last window, and its busiest detail.",
      comparison_picture({{"noisy", &noisy}, {"denoised", &result.clip}, {"clean", &clean}},
                         clean.frames - window + window / 2)};
  return make_page(inspection, {comparison});
}

void denoise(const DenoiseOptions& options) {
  const Timer timer;
  if (options.overlap >= options.clip.window) {
    refuse("--overlap", "fewer frames than --window " + std::to_string(options.clip.window),
           std::to_string(options.overlap));
  }
  DenoiseSettings settings;
  settings.sigma = options.clip.sigma;
  settings.window = options.clip.window;
  settings.overlap = options.overlap;
  settings.tile = options.clip.tile_shape();
  settings.selection = options.clip.selection();
  settings.keys = options.clip.pooled_keys();
  // Everything that can be refused is, before the long work.
  AtomicFile output("--output", options.output);
  if (!options.json.empty()) check_writable("--json", options.json);
  if (!options.no_pictures) check_folder("--pictures", options.picture_folder());
  const Timer decode_timer;
  const Clip clean = options.clip.read(options.first, options.frames);
  const double decode_seconds = decode_timer.seconds();
  const Clip noisy = add_noise(clean, settings.sigma, options.clip.seed);

  PlanOptions how;
  how.backend = options.run.backend;
  how.parallel = options.run.parallel();
  WindowDenoiser denoiser(std::min(settings.window, clean.frames), clean.height, clean.width,
                          settings.tile, how);
  const Plan& plan = denoiser.plan();
  const std::int64_t kept = plan.resolve_top_k(settings.selection);

  DenoiseResult result;
  {
    ProgressBar bar("denoising");
    result = denoise_clip(denoiser, noisy, settings,
                          [&](std::size_t done, std::size_t all) { bar.show(done, all); });
  }
  const Timer encode_timer;
  write_video("--output", output.temporary().string(), result.clip);
  const double encode_seconds = encode_timer.seconds();

  std::vector<AtomicFile> outputs;
  if (!options.no_pictures) {
    outputs = stage_files("--pictures", options.picture_folder(),
                          make_pictures(options, denoiser, clean, noisy, result));
  }
  outputs.push_back(std::move(output));

  const Quality before = quality(noisy, clean);
  const Quality after = quality(result.clip, clean);
  std::printf(
      "%d frames of %dx%d, sigma %g, %zu windows of %s, k = %lld of %lld tiles, backend %s "
      "(%s), %d threads\n",
      clean.frames, clean.width, clean.height, settings.sigma, result.windows,
      plan.problem().query.to_string().c_str(), static_cast<long long>(kept),
      static_cast<long long>(plan.key_layout().tiles()), plan.backend().c_str(),
      plan.backend_detail().c_str(), how.parallel.concurrency());
  print_quality("noisy", before);
  print_quality("denoised", after);
  print_times(result.times);

  Json report;
  report["clip"] = {{"frames", clean.frames}, {"width", clean.width}, {"height", clean.height}};
  report["sigma"] = settings.sigma;
  report["seed"] = options.clip.seed;
  report["window"] = settings.window;
  report["overlap"] = settings.overlap;
  report["tile"] = options.clip.tile;
  report["selection"] = options.clip.keys;
  report["tiles"] = plan.key_layout().tiles();
  report["top_k"] = kept;
  report["backend"] = plan.backend();
  report["backend_detail"] = plan.backend_detail();
  report["threads"] = how.parallel.concurrency();
  report["noisy"] = to_json(before);
  report["denoised"] = to_json(after);
  report["seconds"] = to_json(result.times);
  report["seconds"]["decode"] = decode_seconds;
  report["seconds"]["encode"] = encode_seconds;

  if (options.compare) {
    // Small enough for all pairs: 240x136 by 4 frames are 130 560 tokens.
    const Clip small = options.clip.read(options.first, 4, "240x136");
    ProgressBar bar("dense, for comparison");
    bar.show(0, 1);
    const Comparison comparison = compare_with_dense(
        small, add_noise(small, settings.sigma, options.clip.seed), settings, how);
    report["compare"] = print_comparison(comparison);
  }
  report["seconds"]["wall"] = timer.seconds();
  report["peak_memory"] = peak_memory();
  if (!options.json.empty()) {
    outputs.emplace_back("--json", options.json);
    outputs.back().write(json_text(report) + "\n");
  }
  commit_all(outputs);
  std::printf("decode %.2f s, encode %.2f s, all %.2f s; peak memory %s\nwrote %s\n",
              decode_seconds, encode_seconds, timer.seconds(),
              bytes_text(static_cast<double>(peak_memory())).c_str(), options.output.c_str());
  if (!options.no_pictures) {
    std::printf("look at %s\n", (options.picture_folder() / "index.html").string().c_str());
  }
}

}  // namespace

void register_denoise(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "denoise", "Add noise to a clip and take it out again: non-local means as sparse attention");
  const auto options = std::make_shared<DenoiseOptions>();
  command->add_option("clip", options->clip.path, "Any video that ffmpeg reads")->required();
  command->add_option("-o,--output", options->output, "The denoised clip, such as out.mp4")
      ->required();
  options->clip.add_to(*command);
  command->add_option("--frames", options->frames, "Frames to denoise")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--first", options->first, "Frames of the clip to skip")
      ->check(CLI::Range(0, 10000000))
      ->capture_default_str();
  command->add_option("--overlap", options->overlap, "Frames that consecutive windows share")
      ->check(CLI::Range(0, 1023))
      ->capture_default_str();
  options->run.add_to(*command);
  command->add_flag("--compare", options->compare,
                    "Also dense attention, on one window of 240x136, 4 frames");
  command->add_option("--json", options->json, "Write the report there as well");
  CLI::Option* pictures =
      command->add_option("--pictures", options->pictures,
                          "Folder for the pictures (default: OUTPUT's name + _inspect)");
  command->add_flag("--no-pictures", options->no_pictures, "No pictures")->excludes(pictures);
  command->callback([options] { denoise(*options); });
}

}  // namespace vidsparse::tools
