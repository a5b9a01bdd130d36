#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "clip_options.hpp"
#include "commands.hpp"
#include "inspection.hpp"
#include "options.hpp"
#include "parse.hpp"
#include "refuse.hpp"
#include "safetensors.hpp"

namespace vidsparse::tools {
namespace {

struct InspectOptions {
  ClipOptions clip;
  RunOptions run;
  std::string output;
  std::string grid;
  std::string prefix;
  std::vector<std::string> query_tiles;
  std::int64_t batch = 0;
  std::int64_t head = 0;
  int frame = 0;
};

/// Which tiles to draw, then the files; prints where they are.
void write_page(const InspectOptions& options, Inspection& inspection) {
  for (const std::string& text : options.query_tiles) {
    inspection.query_tiles.push_back(parse_tile("--query-tile", text, inspection.grid));
  }
  if (inspection.query_tiles.empty()) inspection.query_tiles = interesting_tiles(inspection);
  std::vector<AtomicFile> files = stage_files("--out", options.output, make_page(inspection, {}));
  commit_all(files);

  const HeadStatistics statistics =
      head_statistics(inspection.mask, inspection.grid, inspection.batch, inspection.head);
  std::printf("%s: %.1f tiles a list\n", inspection.subtitle.c_str(), statistics.list_length);
  std::printf("  mean distance in tiles: t %.2f (blind %.2f), h %.2f (%.2f), w %.2f (%.2f)\n",
              statistics.distances[0].mean, statistics.distances[0].blind_mean,
              statistics.distances[1].mean, statistics.distances[1].blind_mean,
              statistics.distances[2].mean, statistics.distances[2].blind_mean);
  for (const Overlap& overlap : statistics.overlaps) {
    std::printf("  %d neighbours along %-5s: in all lists %5.1f %%, in any %.2f lists\n",
                overlap.group, overlap.along.c_str(), 100 * overlap.common, overlap.all);
  }
  std::printf("look at %s\n",
              (std::filesystem::path(options.output) / "index.html").string().c_str());
}

PlanOptions plan_options(const InspectOptions& options) {
  PlanOptions how;
  how.backend = options.run.backend;
  how.parallel = options.run.parallel();
  return how;
}

/// The denoiser's features of one window.
void inspect_clip(const InspectOptions& options) {
  const TileShape tile = options.clip.tile_shape();
  const Clip clean = options.clip.read(options.frame, options.clip.window);
  const Clip noisy = add_noise(clean, options.clip.sigma, options.clip.seed);
  WindowDenoiser denoiser(clean.frames, clean.height, clean.width, tile, plan_options(options));
  DenoiseTimes times;
  denoiser.choose(to_frames(noisy, 0, noisy.frames), options.clip.sigma, options.clip.selection(),
                  options.clip.pooled_keys(), times);

  const Plan& plan = denoiser.plan();
  Inspection inspection;
  inspection.title =
      "vidsparse inspect " + std::filesystem::path(options.clip.path).filename().string();
  inspection.subtitle = plan.problem().query.to_string() + ", tiles of " + options.clip.tile +
                        " pixels, " + options.clip.selection_text() + ", frames from " +
                        std::to_string(options.frame);
  inspection.tile = tile;
  inspection.grid = video_tiles(plan.query_layout());
  inspection.mask = denoiser.mask().view();
  inspection.pooled_queries = denoiser.pooled_queries().ref;
  inspection.pooled_keys = denoiser.pooled_keys().ref;
  inspection.frames = clean;
  write_page(options, inspection);
}

/// A tensor of the file, [B, S, H, D] in a floating type.
const TensorEntry& require_tensor(const SafetensorsReader& reader, const std::string& name) {
  const TensorEntry* entry = reader.header().find(name);
  if (entry == nullptr) refuse(reader.file(), "a tensor \"" + name + "\"", "none");
  if (entry->shape.size() != 4 || !entry->dtype || !is_floating(*entry->dtype) ||
      entry->bytes() == 0) {
    refuse(reader.file(), "\"" + name + "\" as [B, S, H, D] in BF16, F16, F32 or F64",
           entry->to_string());
  }
  return *entry;
}

/// q and k of a model.
void inspect_tensors(const InspectOptions& options) {
  if (options.grid.empty()) refuse("--grid", "TxHxW of the file's video", "none");
  const auto [t, h, w] = parse_box("--grid", options.grid);
  Problem problem;
  problem.query = Sequence::grid({t, h, w}, parse_lengths("--prefix", options.prefix));
  problem.tile = options.clip.tile_shape();
  const TileLayout layout(problem.query, problem.tile);

  SafetensorsReader reader(options.clip.path);
  const TensorEntry& q = require_tensor(reader, "q");
  const TensorEntry& k = require_tensor(reader, "k");
  if (k.dtype != q.dtype || k.shape[0] != q.shape[0] || k.shape[1] != q.shape[1] ||
      k.shape[3] != q.shape[3] || q.shape[2] % k.shape[2] != 0) {
    refuse(reader.file(), "\"k\" to fit q " + q.to_string(), k.to_string());
  }
  if (q.shape[1] != layout.tokens()) {
    refuse("--grid", "the file's " + std::to_string(q.shape[1]) + " tokens",
           std::to_string(layout.tokens()));
  }
  if (options.head >= q.shape[2]) {
    refuse("--head", "below the file's " + std::to_string(q.shape[2]),
           std::to_string(options.head));
  }
  if (options.batch >= q.shape[0]) {
    refuse("--batch", "below the file's " + std::to_string(q.shape[0]),
           std::to_string(options.batch));
  }
  problem.batch = q.shape[0];
  problem.heads_q = q.shape[2];
  problem.heads_kv = k.shape[2];
  problem.head_dim = q.shape[3];
  problem.dtype = *q.dtype;
  const Plan plan(problem, plan_options(options));

  const OwnedTensor queries(query_tensor(plan));
  const OwnedTensor keys(key_tensor(plan));
  reader.read(q, queries.memory.bytes());
  reader.read(k, keys.memory.bytes());
  const OwnedTensor pooled_queries(query_pooled(plan));
  const OwnedTensor pooled_keys(key_pooled(plan));
  PoolArgs pool;
  pool.q = queries.ref;
  pool.k = keys.ref;
  pool.qc = pooled_queries.ref;
  pool.kc = pooled_keys.ref;
  plan.pool(pool, Buffer(plan.workspace_bytes(pool)).workspace());
  TileMask mask(plan.mask_shape());
  SelectArgs select;
  select.qc = pooled_queries.ref;
  select.kc = pooled_keys.ref;
  select.selection = options.clip.selection();
  select.mask = mask.ref();
  plan.select(select, Buffer(plan.workspace_bytes(select)).workspace());

  Inspection inspection;
  inspection.title =
      "vidsparse inspect " + std::filesystem::path(options.clip.path).filename().string();
  inspection.subtitle = problem.query.to_string() + ", tiles of " + options.clip.tile +
                        " tokens, " + options.clip.selection_text() + ", pictures of head " +
                        std::to_string(options.head) + " of " + std::to_string(q.shape[2]);
  inspection.tile = problem.tile;
  inspection.grid = video_tiles(layout);
  inspection.mask = mask.view();
  inspection.pooled_queries = pooled_queries.ref;
  inspection.pooled_keys = pooled_keys.ref;
  inspection.batch = options.batch;
  inspection.head = options.head;
  write_page(options, inspection);
}

void inspect(const InspectOptions& options) {
  check_folder("--out", options.output);
  if (std::filesystem::path(options.clip.path).extension() == ".safetensors") {
    inspect_tensors(options);
  } else {
    inspect_clip(options);
  }
}

}  // namespace

void register_inspect(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "The selection as pictures and as one self-contained page");
  const auto options = std::make_shared<InspectOptions>();
  command
      ->add_option("input", options->clip.path,
                   "A video (its features are those of denoise), or a .safetensors file with q and "
                   "k [B, S, H, D]")
      ->required();
  command->add_option("-o,--out", options->output, "Folder for pictures and page")->required();
  options->clip.add_to(*command);
  command->add_option("--frame", options->frame, "First frame of the video's window")
      ->check(CLI::Range(0, 10000000))
      ->capture_default_str();
  command->add_option("--grid", options->grid, "Tensors: latent tokens of the video, TxHxW");
  command->add_option("--prefix", options->prefix,
                      "Tensors: plain segments before the video: 77,12");
  command->add_option("--query-tile", options->query_tiles,
                      "t,h,w in tiles, or a tile's number; may be repeated (default: three)");
  const auto index = CLI::Range(std::int64_t{0}, std::int64_t{1} << 40);
  command->add_option("--head", options->head, "Tensors: head to draw")->check(index);
  command->add_option("--batch", options->batch, "Tensors: batch entry to draw")->check(index);
  options->run.add_to(*command);
  command->callback([options] { inspect(*options); });
}

}  // namespace vidsparse::tools
