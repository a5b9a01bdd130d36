#include <benchmark/benchmark.h>

#include <cstdint>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.hpp"

// The micro-kernels of every instruction set this machine has, alone on one thread with operands in
// the second-level cache: what the drivers could reach at best.

namespace {

using vidsparse::DType;
using namespace vidsparse::cpu;

/// 64-byte aligned floats, random in [-1, 1).
class Buffer {
 public:
  explicit Buffer(std::size_t count) : data_(count + 16) {
    std::mt19937 engine(std::random_device{}());
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (float& x : data_) x = uniform(engine);
  }
  float* get() {
    const auto address = reinterpret_cast<std::uintptr_t>(data_.data());
    return data_.data() + (64 - address % 64) % 64 / sizeof(float);
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(get());
  }

 private:
  std::vector<float> data_;
};

void report(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

/// S = Q K^T: m x 64 x depth, one fragment after another out of `fragments`.
void scores(benchmark::State& state, const Kernels& kernels, bool bf16, int depth) {
  constexpr int kFragments = 16;
  const int words = bf16 ? depth / 2 : depth;
  Buffer q(64 * words);
  Buffer k(static_cast<std::size_t>(kFragments) * 64 * words);
  Buffer s(64 * 272);
  if (kernels.enter != nullptr) kernels.enter();
  int fragment = 0;
  for (auto _ : state) {
    const Term term{q.get(), k.get() + fragment * 64 * words, words, words};
    const Product product{&term, 1, s.get() + 64 * (fragment % 4), 272, 64, 64, false};
    (bf16 ? kernels.product_bf16 : kernels.product_f32)(product);
    benchmark::ClobberMemory();
    fragment = (fragment + 1) % kFragments;
  }
  if (kernels.leave != nullptr) kernels.leave();
  report(state, 2.0 * 64 * 64 * depth);
}

/// O += P V over a group of four fragments: 64 x depth x 256.
void values(benchmark::State& state, const Kernels& kernels, bool bf16, int depth) {
  constexpr int kGroup = 4;
  constexpr int kGroups = 4;
  const int words = bf16 ? 32 : 64;
  const int pitch = kGroup * words + 16;
  Buffer p(64 * static_cast<std::size_t>(pitch));
  Buffer v(static_cast<std::size_t>(kGroup) * kGroups * words * depth);
  Buffer o(64 * static_cast<std::size_t>(depth));
  if (kernels.enter != nullptr) kernels.enter();
  int group = 0;
  for (auto _ : state) {
    Term terms[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      terms[i] = {p.get() + i * words, v.get() + (group * kGroup + i) * words * depth, pitch,
                  words};
    }
    const Product product{terms, kGroup, o.get(), depth, 64, depth, true};
    (bf16 ? kernels.product_bf16 : kernels.product_f32)(product);
    benchmark::ClobberMemory();
    group = (group + 1) % kGroups;
  }
  if (kernels.leave != nullptr) kernels.leave();
  report(state, 2.0 * 64 * depth * 64 * kGroup);
}

void softmax(benchmark::State& state, const Kernels& kernels, bool bf16, int columns) {
  const int pitch = columns + 16;
  Buffer source(64 * static_cast<std::size_t>(pitch));
  Buffer s(64 * static_cast<std::size_t>(pitch));
  Buffer p(64 * static_cast<std::size_t>(pitch));
  Buffer out(64 * 128);
  std::vector<float> max(64), sum(64);
  for (auto _ : state) {
    SoftmaxBlock block{s.get(),   pitch,      p.as<std::uint16_t>(),
                       2 * pitch, 64,         columns,
                       0.1f,      max.data(), sum.data(),
                       out.get(), 128,        128,
                       false};
    (bf16 ? kernels.softmax_bf16 : kernels.softmax_f32)(block);
    benchmark::ClobberMemory();
  }
  state.counters["ns/vector16"] =
      benchmark::Counter(64.0 * columns / 16 * 1e-9, benchmark::Counter::kIsIterationInvariantRate |
                                                         benchmark::Counter::kInvert);
}

void gradient(benchmark::State& state, const Kernels& kernels, bool bf16) {
  Buffer s(64 * 64);
  Buffer dp(64 * 64);
  Buffer lse(64);
  Buffer delta(64);
  Buffer p(64 * 64);
  Buffer ds(64 * 64);
  Buffer pairs(64 * 64);
  for (auto _ : state) {
    const GradientBlock block{s.get(),
                              dp.get(),
                              64,
                              64,
                              64,
                              64,
                              0.1f,
                              lse.get(),
                              delta.get(),
                              p.as<std::uint16_t>(),
                              ds.as<std::uint16_t>(),
                              32,
                              pairs.as<std::uint32_t>()};
    (bf16 ? kernels.gradient_bf16 : kernels.gradient_f32)(block);
    benchmark::ClobberMemory();
  }
}

void expand(benchmark::State& state, const Kernels& kernels, DType dtype) {
  constexpr int kFragments = 16;
  Buffer words(kFragments * 32 * 128);
  Buffer out(64 * 128);
  int fragment = 0;
  for (auto _ : state) {
    kernels.expand_pairs(dtype, words.as<std::uint32_t>() + fragment * 32 * 128, 32, 128,
                         out.get());
    benchmark::ClobberMemory();
    fragment = (fragment + 1) % kFragments;
  }
}

void transpose(benchmark::State& state, const Kernels& kernels) {
  Buffer rows(64 * 3072);
  Buffer out(64 * 128);
  std::vector<const void*> pointers;
  for (int i = 0; i < 64; ++i) pointers.push_back(rows.get() + i * 1536);
  for (auto _ : state) {
    kernels.transpose_words(pointers.data(), 64, 128, out.as<std::uint32_t>(), 64, 64, 128);
    benchmark::ClobberMemory();
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const Isa& isa : isas()) {
    if (!isa.verdict.ok) continue;
    const Kernels& kernels = *isa.kernels;
    const std::string prefix = std::string(isa.name) + "/";
    const auto add = [&](const std::string& name, auto work) {
      benchmark::RegisterBenchmark((prefix + name).c_str(), work)->Unit(benchmark::kMicrosecond);
    };
    for (const int d : {64, 128}) {
      const std::string size = "/d" + std::to_string(d);
      add("scores_f32" + size, [=, &kernels](auto& s) { scores(s, kernels, false, d); });
      add("values_f32" + size, [=, &kernels](auto& s) { values(s, kernels, false, d); });
      if (kernels.product_bf16 == nullptr) continue;
      add("scores_bf16" + size, [=, &kernels](auto& s) { scores(s, kernels, true, d); });
      add("values_bf16" + size, [=, &kernels](auto& s) { values(s, kernels, true, d); });
    }
    add("softmax_f32/256", [&kernels](auto& s) { softmax(s, kernels, false, 256); });
    add("gradient_f32", [&kernels](auto& s) { gradient(s, kernels, false); });
    add("expand_bf16", [&kernels](auto& s) { expand(s, kernels, DType::bf16); });
    add("expand_f16", [&kernels](auto& s) { expand(s, kernels, DType::f16); });
    add("transpose_64x128", [&kernels](auto& s) { transpose(s, kernels); });
    if (kernels.product_bf16 == nullptr) continue;
    add("softmax_bf16/256", [&kernels](auto& s) { softmax(s, kernels, true, 256); });
    add("gradient_bf16", [&kernels](auto& s) { gradient(s, kernels, true); });
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
