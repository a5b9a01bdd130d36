#include "window_denoiser.hpp"

#include <chrono>

namespace vidsparse::tools {
namespace {

Problem window_problem(int frames, int height, int width, TileShape tile) {
  Problem problem;
  problem.query = Sequence::grid({frames, height, width});
  problem.tile = tile;
  problem.head_dim = kHeadDim;
  problem.dtype = DType::bf16;
  return problem;
}

/// Adds the seconds of its life to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

DenoiseTimes& DenoiseTimes::operator+=(const DenoiseTimes& other) {
  features += other.features;
  pool += other.pool;
  select += other.select;
  attend += other.attend;
  average += other.average;
  return *this;
}

double denoise_scale(double sigma) {
  const double pixel_sigma = sigma / 255;
  return 1 / (0.15 * 2 * kPatchValues * 0.9 * pixel_sigma * pixel_sigma);
}

WindowDenoiser::WindowDenoiser(int frames, int height, int width, TileShape tile,
                               const PlanOptions& options)
    : plan_(window_problem(frames, height, width, tile), options),
      pooled_queries_(query_pooled(plan_)),
      pooled_keys_(key_pooled(plan_)),
      always_(always_own_tile(plan_.query_layout(), plan_.key_layout())),
      mask_(plan_.mask_shape()) {}

void WindowDenoiser::reserve(std::size_t bytes) {
  if (workspace_.size() < bytes) workspace_ = Buffer(bytes);
}

void WindowDenoiser::choose(const Frames& noisy, double sigma, const Selection& selection,
                            PooledKeys keys, DenoiseTimes& times) {
  {
    const Stopwatch watch(times.features);
    basis_ = learn_basis(noisy);
    make_tensors(noisy, basis_, tensors_);
  }
  {
    const Stopwatch watch(times.pool);
    PoolArgs args;
    args.q = query_tensor(plan_, tensors_.q.data());
    args.k = key_tensor(plan_, tensors_.k.data());
    args.qc = pooled_queries_.ref;
    args.kc = pooled_keys_.ref;
    reserve(plan_.workspace_bytes(args));
    plan_.pool(args, workspace_.workspace());
    if (keys == PooledKeys::mean_norm) use_norm_of_mean(pooled_keys_.ref);
  }
  const Stopwatch watch(times.select);
  SelectArgs args;
  args.qc = pooled_queries_.ref;
  args.kc = pooled_keys_.ref;
  args.selection = selection;
  // Its own tile holds the patches most like a query's own, whatever the means say.
  args.selection.always = always_.view();
  args.scale = denoise_scale(sigma);
  args.mask = mask_.ref();
  reserve(plan_.workspace_bytes(args));
  plan_.select(args, workspace_.workspace());
}

Frames WindowDenoiser::run(const Frames& noisy, double sigma, const Selection& selection,
                           PooledKeys keys, DenoiseTimes& times) {
  choose(noisy, sigma, selection, keys, times);
  {
    const Stopwatch watch(times.attend);
    estimates_.resize(tensors_.v.size());
    AttendArgs args;
    args.q = query_tensor(plan_, tensors_.q.data());
    args.k = key_tensor(plan_, tensors_.k.data());
    args.v = key_tensor(plan_, tensors_.v.data());
    args.scale = denoise_scale(sigma);
    args.mask = mask_.view();
    args.out = query_tensor(plan_, estimates_.data());
    reserve(plan_.workspace_bytes(args));
    plan_.attend(args, workspace_.workspace());
  }
  const Stopwatch watch(times.average);
  return average_patches(estimates_, basis_.mean, noisy.frames, noisy.height, noisy.width);
}

}  // namespace vidsparse::tools
