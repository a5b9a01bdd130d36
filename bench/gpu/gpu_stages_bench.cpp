// Times of pool, select, attend and the whole forward and backward on a GPU, bf16, random data,
// (4,4,4) tiles unless told otherwise. Each figure is the median of runs between two events, after
// a warm-up, with the second-level cache overwritten before each.

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "parse.hpp"
#include "presets.hpp"
#include "random_fill.hpp"
#include "random_lists.hpp"
#include "vidsparse/vidsparse.hpp"

namespace {

using namespace vidsparse;
using Json = nlohmann::ordered_json;

void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

/// Runs work many times and takes the median of its device time.
class Timer {
 public:
  explicit Timer(double seconds) : seconds_(seconds), flush_(std::size_t{256} << 20), clock_(16) {
    require(cudaEventCreate(&start_), "cudaEventCreate");
    require(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~Timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  /// Milliseconds.
  double median(const std::function<void()>& work) {
    std::vector<double> times;
    double total = 0;
    double warm = 0;
    while (warm < 15 || total < seconds_ * 1e3 || times.size() < 5) {
      const double once = run(work);
      if (warm < 15) {
        warm += once + 0.01;
        continue;
      }
      times.push_back(once);
      total += once;
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }

  /// MHz of a multiprocessor right after the work before.
  double clock() {
    std::uint64_t result[2];
    measure_clock(static_cast<std::uint64_t*>(clock_.data()), nullptr);
    require(cudaMemcpy(result, clock_.data(), sizeof(result), cudaMemcpyDefault), "clock");
    return static_cast<double>(result[0]) * 1e3 / static_cast<double>(result[1]);
  }

 private:
  double run(const std::function<void()>& work) {
    require(cudaMemsetAsync(flush_.data(), 0, flush_.bytes(), nullptr), "cudaMemsetAsync");
    require(cudaEventRecord(start_), "cudaEventRecord");
    work();
    require(cudaEventRecord(stop_), "cudaEventRecord");
    require(cudaEventSynchronize(stop_), "cudaEventSynchronize");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
    return milliseconds;
  }

  double seconds_;
  DeviceBuffer flush_;
  DeviceBuffer clock_;
  cudaEvent_t start_{};
  cudaEvent_t stop_{};
};

struct Options {
  std::vector<std::string> problems = {"33k", "wan14b-720p", "123k"};
  std::vector<std::string> stages;
  std::string backend = "sm90";
  std::string tile = "4x4x4";
  std::string prefix;
  std::string suffix;
  std::int64_t heads = 0;  ///< 0: the preset's, else 12
  std::vector<double> sparsities = {0.9};
  double common = 0.75;
  double seconds = 0.2;
  std::string json;
};

/// What is measured: a preset, or a grid of the caller's.
struct Shape {
  std::string name;
  Problem problem;
};

Shape parse_shape(const Options& options, const std::string& name) {
  Shape shape{name, {}};
  std::array<std::int64_t, 3> grid{};
  if (name.find('x') != std::string::npos && std::isdigit(static_cast<unsigned char>(name[0]))) {
    grid = tools::parse_box("--problems", name);
    shape.problem.heads_q = 12;
  } else {
    const tools::Preset& preset = tools::find_preset("--problems", name);
    grid = preset.grid;
    shape.problem.heads_q = preset.heads;
    shape.problem.head_dim = preset.head_dim;
  }
  std::vector<Segment> segments;
  const auto append = [&](const char* option, const std::string& lengths) {
    for (const std::int64_t length : tools::parse_lengths(option, lengths)) {
      segments.push_back(Plain{length});
    }
  };
  append("--prefix", options.prefix);
  segments.push_back(Video{grid[0], grid[1], grid[2]});
  append("--suffix", options.suffix);
  shape.problem.query = Sequence(segments);
  const auto [a, b, c] = tools::parse_box("--tile", options.tile);
  shape.problem.tile = {a, b, c};
  if (options.heads > 0) shape.problem.heads_q = options.heads;
  return shape;
}

/// One problem's tensors and the calls on them.
class Bench {
 public:
  Bench(const Options& options, const Shape& shape, Timer& timer, Json& records)
      : options_(options),
        name_(shape.name),
        timer_(timer),
        records_(records),
        plan_(shape.problem, {Device{Device::Kind::cuda, 0}, options.backend, {}}),
        heads_(shape.problem.heads_q),
        depth_(shape.problem.head_dim),
        tokens_(plan_.query_layout().tokens()),
        tiles_(plan_.query_layout().tiles()),
        q_(element_bytes()),
        k_(element_bytes()),
        v_(element_bytes()),
        gate_(element_bytes()),
        out_(element_bytes()),
        qc_(pooled_bytes()),
        kc_(pooled_bytes()),
        vc_(pooled_bytes()),
        oc_(pooled_bytes()),
        lse_(static_cast<std::size_t>(heads_ * tokens_) * 4),
        mask_(static_cast<std::size_t>(plan_.mask_shape().words()) * 8) {
    std::uint64_t seed = (std::uint64_t{std::random_device{}()} << 32) | std::random_device{}();
    for (const DeviceBuffer* buffer : {&q_, &k_, &v_, &gate_}) {
      random_fill_bf16(buffer->data(), static_cast<std::int64_t>(buffer->bytes() / 2), seed++,
                       nullptr);
    }
  }

  void run(double sparsity) {
    selection_.sparsity = sparsity;
    const double bytes = static_cast<double>(q_.bytes());
    // Every video tile its k and all text, every text tile everything; at full size.
    const auto plain = static_cast<double>(plan_.query_layout().plain_tiles());
    const double pairs = static_cast<double>(heads_) *
                         (static_cast<double>(tiles_ - plan_.query_layout().plain_tiles()) *
                              (static_cast<double>(plan_.resolve_top_k(selection_)) + plain) +
                          plain * static_cast<double>(tiles_));
    const double slots = static_cast<double>(plan_.problem().tile.tokens());
    const double flops = 4 * slots * slots * static_cast<double>(depth_) * pairs;

    time("copy of q", 2 * bytes, 0, [&] {
      cudaMemcpyAsync(out_.data(), q_.data(), q_.bytes(), cudaMemcpyDeviceToDevice, nullptr);
    });
    PoolArgs pool;
    pool.q = tokens(q_);
    pool.k = tokens(k_);
    pool.qc = pooled(qc_);
    pool.kc = pooled(kc_);
    time("pool q, k", 2 * bytes, 0, calling(&Plan::pool, pool));
    pool.v = tokens(v_);
    pool.vc = pooled(vc_);
    time("pool q, k, v", 3 * bytes, 0, calling(&Plan::pool, pool));
    SelectArgs select;
    select.qc = pooled(qc_);
    select.kc = pooled(kc_);
    select.selection = selection_;
    select.mask = mask();
    const double scores = 2.0 * static_cast<double>(heads_) * static_cast<double>(tiles_) *
                          static_cast<double>(tiles_) * static_cast<double>(depth_);
    time("select", 0, scores, calling(&Plan::select, select));
    select.vc = pooled(vc_);
    select.oc = pooled(oc_);
    time("select with coarse output", 0, 2 * scores, calling(&Plan::select, select));
    // Attention runs on their results, measured or not.
    calling(&Plan::pool, pool)();
    calling(&Plan::select, select)();
    AttendArgs attend;
    attend.q = tokens(q_);
    attend.k = tokens(k_);
    attend.v = tokens(v_);
    attend.mask = mask();
    attend.out = tokens(out_);
    attend.lse = TensorRef::dense(lse_.data(), DType::f32, 3, {1, heads_, tokens_});
    time("attend", 0, flops, calling(&Plan::attend, attend));
    attend.gate = Gate(tokens(gate_));
    attend.oc = pooled(oc_);
    time("attend with gate", 0, flops, calling(&Plan::attend, attend));
    if (wanted("attend with gate, common lists")) {
      set_lists(common_lists(plan_, kept(), options_.common));
      time("attend with gate, common lists", 0, flops, calling(&Plan::attend, attend));
    }
    ForwardArgs forward;
    forward.q = tokens(q_);
    forward.k = tokens(k_);
    forward.v = tokens(v_);
    forward.selection = selection_;
    forward.out = tokens(out_);
    time("forward", 0, flops, calling(&Plan::forward, forward));
    forward.gate = Gate(tokens(gate_));
    time("forward with gate", 0, flops, calling(&Plan::forward, forward));
    if (wanted("forward with gate")) report_call(forward);
    run_backward(forward, 2.5 * flops);
  }

 private:
  /// With a gate and without; five products where the forward has two.
  void run_backward(ForwardArgs forward, double flops) {
    if (!wanted("backward") && !wanted("backward with gate")) return;
    DeviceBuffer dout(element_bytes()), dq(element_bytes()), dk(element_bytes()),
        dv(element_bytes()), dgate(element_bytes());
    random_fill_bf16(dout.data(), static_cast<std::int64_t>(dout.bytes() / 2), 7, nullptr);
    const auto row_bytes = static_cast<std::size_t>(heads_ * tiles_) * 4;
    DeviceBuffer max(row_bytes), sum(row_bytes);
    const auto rows = [&](const DeviceBuffer& buffer, std::int64_t count) {
      return TensorRef::dense(buffer.data(), DType::f32, 3, {1, heads_, count});
    };
    for (const bool gated : {false, true}) {
      forward.gate = gated ? Gate(tokens(gate_)) : Gate();
      forward.mask = mask();
      forward.lse = rows(lse_, tokens_);
      if (gated) {
        forward.oc = pooled(oc_);
        forward.coarse_max = rows(max, tiles_);
        forward.coarse_sum = rows(sum, tiles_);
      }
      calling(&Plan::forward, forward)();
      BackwardArgs args = backward_of(forward);
      args.dout = tokens(dout);
      args.dq = tokens(dq);
      args.dk = tokens(dk);
      args.dv = tokens(dv);
      if (gated) args.dgate = tokens(dgate);
      time(gated ? "backward with gate" : "backward", 0, flops, calling(&Plan::backward, args));
      std::printf("%-14s workspace of it %.1f MB\n", name_.c_str(),
                  static_cast<double>(plan_.workspace_bytes(args)) * 1e-6);
      if (gated) continue;
      // lse stays that of the selection, which no time depends on.
      if (wanted("backward, common lists")) {
        set_lists(common_lists(plan_, kept(), options_.common));
        time("backward, common lists", 0, flops, calling(&Plan::backward, args));
      }
      if (wanted("backward, uneven lists")) {
        set_lists(uneven_lists(plan_, kept()));
        time("backward, uneven lists", 0, flops, calling(&Plan::backward, args));
      }
    }
  }

  /// What a call costs beside device time: the host's, and memory.
  void report_call(const ForwardArgs& forward) {
    const auto work = calling(&Plan::forward, forward);
    std::vector<double> times;
    require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    // One after the other, as a model calls it; few enough that no launch waits for the queue.
    // After a wait for the device the host's caches would be cold.
    for (int i = 0; i < 41; ++i) {
      const auto start = std::chrono::steady_clock::now();
      work();
      const std::chrono::duration<double, std::micro> taken =
          std::chrono::steady_clock::now() - start;
      times.push_back(taken.count());
    }
    require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    std::sort(times.begin(), times.end());
    const double workspace = static_cast<double>(plan_.workspace_bytes(forward));
    const double share = workspace / static_cast<double>(q_.bytes());
    std::printf("%-14s host time of a call %.1f us, workspace %.1f MB = %.1f %% of q\n",
                name_.c_str(), times[times.size() / 2], workspace * 1e-6, share * 100);
    records_.push_back({{"problem", name_},
                        {"stage", "call of forward with gate"},
                        {"host_us", times[times.size() / 2]},
                        {"workspace_bytes", workspace},
                        {"workspace_of_q", share}});
  }

  /// Key tiles of a list.
  std::int64_t kept() const { return std::max<std::int64_t>(1, plan_.resolve_top_k(selection_)); }
  void set_lists(const TileMask& lists) {
    require(cudaMemcpy(mask_.data(), lists.view().words, mask_.bytes(), cudaMemcpyDefault),
            "cudaMemcpy");
  }
  std::size_t element_bytes() const {
    return static_cast<std::size_t>(tokens_ * heads_ * depth_) * 2;
  }
  std::size_t pooled_bytes() const {
    return static_cast<std::size_t>(tiles_ * heads_ * depth_) * 4;
  }
  TensorRef tokens(const DeviceBuffer& buffer) const {
    return TensorRef::dense(buffer.data(), DType::bf16, 4, {1, tokens_, heads_, depth_});
  }
  TensorRef pooled(const DeviceBuffer& buffer) const {
    return TensorRef::dense(buffer.data(), DType::f32, 4, {1, heads_, tiles_, depth_});
  }
  TileMaskRef mask() const {
    return {static_cast<std::uint64_t*>(mask_.data()), plan_.mask_shape()};
  }

  template <class Args>
  std::function<void()> calling(void (Plan::*stage)(const Args&, Workspace, void*) const,
                                const Args& args) {
    const std::size_t bytes = plan_.workspace_bytes(args);
    auto workspace = std::make_shared<DeviceBuffer>(bytes);
    return [this, stage, args, workspace, bytes] {
      (plan_.*stage)(args, {workspace->data(), bytes}, nullptr);
    };
  }

  bool wanted(const std::string& stage) const {
    return options_.stages.empty() ||
           std::any_of(options_.stages.begin(), options_.stages.end(),
                       [&](const std::string& start) { return stage.starts_with(start); });
  }

  /// Bytes moved and floating-point operations; 0 leaves a rate out.
  void time(const std::string& stage, double bytes, double flops,
            const std::function<void()>& work) {
    if (!wanted(stage)) return;
    const double milliseconds = timer_.median(work);
    const double clock = timer_.clock();
    Json record = {{"problem", name_},
                   {"tokens", tokens_},
                   {"heads", heads_},
                   {"tile", options_.tile},
                   {"sparsity", *selection_.sparsity},
                   {"stage", stage},
                   {"ms", milliseconds},
                   {"sm_mhz_after", clock}};
    std::printf("%-14s %.3f %-31s %9.4f ms", name_.c_str(), *selection_.sparsity, stage.c_str(),
                milliseconds);
    if (bytes > 0) {
      record["gb_per_s"] = bytes * 1e-6 / milliseconds;
      std::printf(" %8.0f GB/s", bytes * 1e-6 / milliseconds);
    }
    if (flops > 0) {
      record["tflop_per_s"] = flops * 1e-9 / milliseconds;
      std::printf(" %8.1f TFLOP/s", flops * 1e-9 / milliseconds);
    }
    std::printf("  (%.0f MHz)\n", clock);
    std::fflush(stdout);
    records_.push_back(record);
  }

  const Options& options_;
  std::string name_;
  Timer& timer_;
  Json& records_;
  Plan plan_;
  std::int64_t heads_;
  std::int64_t depth_;
  std::int64_t tokens_;
  std::int64_t tiles_;
  DeviceBuffer q_, k_, v_, gate_, out_, qc_, kc_, vc_, oc_, lse_, mask_;
  Selection selection_;
};

int run(const Options& options) {
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  Timer timer(options.seconds);
  Json records = Json::array();
  for (const std::string& name : options.problems) {
    Bench bench(options, parse_shape(options, name), timer, records);
    for (const double sparsity : options.sparsities) bench.run(sparsity);
  }
  if (!options.json.empty()) {
    std::ofstream(options.json)
        << Json{{"device", properties.name}, {"version", version()}, {"records", records}}.dump(1)
        << '\n';
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  CLI::App app("Times of the stages on a GPU");
  app.add_option("--problems", options.problems, "grids TxHxW, or of " + tools::preset_names())
      ->delimiter(',');
  app.add_option("--heads", options.heads, "instead of the preset's");
  app.add_option("--prefix", options.prefix, "lengths of text before the video");
  app.add_option("--suffix", options.suffix, "lengths of text behind it");
  app.add_option("--stages", options.stages, "only those that start so")->delimiter(',');
  app.add_option("--backend", options.backend);
  app.add_option("--tile", options.tile);
  app.add_option("--sparsity", options.sparsities)->delimiter(',');
  app.add_option("--common", options.common, "share of neighbours' lists, see common lists");
  app.add_option("--seconds", options.seconds, "of each measurement");
  app.add_option("--json", options.json, "file to write the records to");
  CLI11_PARSE(app, count, arguments);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_stages_bench: %s\n", error.what());
    return 1;
  }
}
