#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/amx_product.hpp"
#include "cpu/isa.hpp"

// Every micro-kernel of every instruction set this machine has against double loops, on random
// sizes; the AMX product also over tiles emulated in software. Outputs start as NaN.

namespace vidsparse::cpu {
void PrintTo(const Kernels& kernels, std::ostream* stream) { *stream << kernels.name; }
}  // namespace vidsparse::cpu

namespace {

using namespace vidsparse::cpu;
using vidsparse::DType;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// The eight tiles of 16 x 64 bytes and the instructions on them, as the SDM defines them.
struct EmulatedTiles {
  static inline std::uint8_t tiles[8][16][64];
  static void prefetch(const char*) {}
  template <int T>
  static void load(const void* base, std::ptrdiff_t stride) {
    for (int r = 0; r < 16; ++r) {
      std::memcpy(tiles[T][r], static_cast<const char*>(base) + r * stride, 64);
    }
  }
  template <int T>
  static void store(void* base, std::ptrdiff_t stride) {
    for (int r = 0; r < 16; ++r)
      std::memcpy(static_cast<char*>(base) + r * stride, tiles[T][r], 64);
  }
  template <int T>
  static void zero() {
    std::memset(tiles[T], 0, sizeof tiles[T]);
  }
  static float bf16(int tile, int row, int element) {
    std::uint16_t half;
    std::memcpy(&half, tiles[tile][row] + 2 * element, 2);
    return std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
  }
  template <int C, int A, int B>
  static void dot() {
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, tiles[C][m] + 4 * n, 4);
        for (int k = 0; k < 32; ++k) sum += bf16(A, m, k) * bf16(B, k / 2, 2 * n + k % 2);
        std::memcpy(tiles[C][m] + 4 * n, &sum, 4);
      }
    }
  }
};

std::vector<Kernels> tables() {
  std::vector<Kernels> list;
  for (const Isa& isa : isas()) {
    if (isa.verdict.ok) list.push_back(*isa.kernels);
  }
  Kernels emulated = scalar_kernels();
  emulated.name = "amx_emulated";
  emulated.product_bf16 = amx_product<EmulatedTiles>;
  emulated.depth_multiple = kTile;
  list.push_back(emulated);
  return list;
}

float widened(std::uint16_t bf16) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bf16) << 16);
}

class CpuKernels : public ::testing::TestWithParam<Kernels> {
 protected:
  CpuKernels() : seed_(std::random_device{}()), engine_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
    trace_ = std::make_unique<::testing::ScopedTrace>(__FILE__, __LINE__,
                                                      "seed " + std::to_string(seed_));
    if (kernels().enter != nullptr) kernels().enter();
  }
  ~CpuKernels() override {
    if (kernels().leave != nullptr) kernels().leave();
  }
  const Kernels& kernels() const { return GetParam(); }
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  float value(float scale = 1.0f) { return std::normal_distribution<float>(0.0f, scale)(engine_); }
  std::vector<float> values(std::size_t count, float scale = 1.0f) {
    std::vector<float> list(count);
    for (float& x : list) x = value(scale);
    return list;
  }
  /// Random bf16 words.
  std::vector<std::uint32_t> words(std::size_t count) {
    std::vector<std::uint32_t> list(count);
    for (std::uint32_t& w : list) {
      w = (std::bit_cast<std::uint32_t>(value()) & 0xffff0000U) |
          (std::bit_cast<std::uint32_t>(value()) >> 16);
    }
    return list;
  }

 private:
  unsigned seed_;
  std::mt19937 engine_;
  std::unique_ptr<::testing::ScopedTrace> trace_;
};

/// The value of half `h` (0, 1) of a bf16 word, or of an fp32 word (h = 0).
double element(const std::uint32_t* w, bool bf16, int h) {
  if (!bf16) return std::bit_cast<float>(*w);
  return widened(static_cast<std::uint16_t>(h == 0 ? *w & 0xffffU : *w >> 16));
}

TEST_P(CpuKernels, ProductMatchesLoops) {
  for (int round = 0; round < 60; ++round) {
    const bool bf16 = kernels().product_bf16 != nullptr && round % 2 == 1;
    const int m = pick(1, 64);
    const int n = 16 * pick(1, 16);
    const int count = pick(1, 20);
    const bool accumulate = pick(0, 1) == 1;
    const int rows = (m + 15) / 16 * 16;
    std::vector<std::vector<std::uint32_t>> a, b;
    std::vector<Term> terms;
    for (int t = 0; t < count; ++t) {
      const int depth = bf16 ? kernels().depth_multiple * pick(1, 20) : pick(1, 150);
      const int lda = depth + pick(0, 9);
      a.push_back(words(static_cast<std::size_t>(rows * lda)));
      b.push_back(words(static_cast<std::size_t>(depth * n)));
      terms.push_back({a.back().data(), b.back().data(), lda, depth});
      if (pick(0, 1) == 1) {
        terms.back().ahead = b.front().data();
        terms.back().ahead_bytes = pick(0, 50000);
      }
    }
    const int ldc = n + pick(0, 5);
    std::vector<float> c(static_cast<std::size_t>(rows * ldc), kNan);
    if (accumulate) c = values(c.size());
    const std::vector<float> before = c;
    const Product product{terms.data(), count, c.data(), ldc, m, n, accumulate};
    (bf16 ? kernels().product_bf16 : kernels().product_f32)(product);

    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < ldc; ++j) {
        const float got = c[static_cast<std::size_t>(i * ldc + j)];
        const float old = before[static_cast<std::size_t>(i * ldc + j)];
        if (j >= n) {  // nothing is written between the rows
          ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(old));
          continue;
        }
        if (i >= m) continue;
        double want = accumulate ? old : 0.0;
        double size = std::abs(want);
        for (int t = 0; t < count; ++t) {
          const Term& term = terms[static_cast<std::size_t>(t)];
          const int panel = j / kPanel;
          const int width = std::min(kPanel, n - panel * kPanel);
          for (int k = 0; k < term.depth; ++k) {
            for (int h = 0; h < (bf16 ? 2 : 1); ++h) {
              const auto* left = static_cast<const std::uint32_t*>(term.a) + i * term.lda + k;
              const auto* right = static_cast<const std::uint32_t*>(term.b) +
                                  panel * kPanel * term.depth + k * width + j % kPanel;
              const double p = element(left, bf16, h) * element(right, bf16, h);
              want += p;
              size += std::abs(p);
            }
          }
        }
        ASSERT_NEAR(got, want, 2e-6 * size + 1e-30)
            << "m " << m << " n " << n << " at " << i << " " << j;
      }
    }
  }
}

TEST_P(CpuKernels, SoftmaxMatchesLoops) {
  for (int round = 0; round < 40; ++round) {
    const bool bf16 = kernels().softmax_bf16 != nullptr && round % 2 == 1;
    const int m = pick(1, 64);
    const int d = 16 * pick(1, 8);
    const float scale = std::abs(value()) + 0.01f;
    const int steps = pick(1, 4);
    std::vector<float> max(64, kNan), sum(64, kNan), out(static_cast<std::size_t>(64 * d), kNan);
    std::vector<double> want_sum(64, 0.0), want_max(64, -kInf), factor(64, 1.0);
    for (int step = 0; step < steps; ++step) {
      const int n = 16 * pick(1, 32);
      const int lds = n + pick(0, 9);
      std::vector<float> s = values(static_cast<std::size_t>(m * lds), 4.0f);
      for (int i = 0; i < m; ++i) {
        const int masked = pick(0, 3) == 0 ? n : pick(0, 15);  // whole rows, too
        for (int j = n - masked; j < n; ++j) s[static_cast<std::size_t>(i * lds + j)] = -kInf;
      }
      if (step == 0) std::fill(out.begin(), out.end(), 0.0f);
      if (step == 1) std::fill(out.begin(), out.end(), 1.0f);  // then follows the rescaling
      std::vector<std::uint16_t> p(static_cast<std::size_t>(m * lds), 0x7fc0);
      const std::vector<float> scores = s;
      SoftmaxBlock block{s.data(),   lds,        p.data(),   lds, m, n,        scale,
                         max.data(), sum.data(), out.data(), d,   d, step == 0};
      (bf16 ? kernels().softmax_bf16 : kernels().softmax_f32)(block);
      for (int i = 0; i < m; ++i) {
        const auto at = [&](int j) { return static_cast<std::size_t>(i * lds + j); };
        const std::size_t row = static_cast<std::size_t>(i);
        double top = want_max[row];
        for (int j = 0; j < n; ++j) top = std::max(top, double{scores[at(j)]} * scale);
        if (top > want_max[row]) {
          const double shrink = std::exp2(want_max[row] - top);
          want_sum[row] *= shrink;
          if (step > 0) factor[row] *= shrink;
          want_max[row] = top;
        }
        for (int j = 0; j < n; ++j) {
          const double want =
              scores[at(j)] == -kInf ? 0.0 : std::exp2(double{scores[at(j)]} * scale - top);
          want_sum[row] += want;
          const double got = bf16 ? widened(p[at(j)]) : s[at(j)];
          // The exponent itself carries half an ulp of what it is the difference of.
          const double exponent =
              want == 0.0 ? 0.0 : std::abs(top) + std::abs(scores[at(j)] * scale);
          const double tolerance = (bf16 ? 0.004 : 3e-7) + 1e-7 * exponent;
          ASSERT_NEAR(got, want, tolerance * want + 1e-37) << "row " << i << " column " << j;
        }
        if (top == -kInf) {
          ASSERT_EQ(sum[row], 0.0f);
          ASSERT_EQ(max[row], -kInf);
        } else {
          ASSERT_NEAR(max[row], top, 1e-6 * std::abs(top));
          ASSERT_NEAR(sum[row], want_sum[row], want_sum[row] * (2e-6 + 2e-7 * std::abs(top)));
        }
        if (step > 0) {
          ASSERT_NEAR(out[static_cast<std::size_t>(i * d + d - 1)], factor[row],
                      factor[row] * (2e-6 + 4e-7 * std::abs(top)) + 1e-37);
        }
      }
    }
  }
}

TEST_P(CpuKernels, SoftmaxPassesNonFiniteOn) {
  constexpr int kColumns = 48;
  std::vector<float> s = values(4 * kColumns);
  s[5] = kNan;             // row 0: NaN
  s[kColumns + 7] = kInf;  // row 1: +inf, whose exponential is NaN
  for (int j = 0; j < kColumns; ++j) s[static_cast<std::size_t>(2 * kColumns + j)] = kNan;
  float max[16], sum[16];
  SoftmaxBlock block{s.data(), kColumns, nullptr, 0, 4, kColumns, 1.0f,
                     max,      sum,      nullptr, 0, 0, true};
  kernels().softmax_f32(block);
  EXPECT_TRUE(std::isnan(sum[0]) && std::isnan(s[5]) && !std::isnan(s[4]));
  EXPECT_TRUE(std::isnan(sum[1]) && std::isnan(s[kColumns + 7]) && s[kColumns] == 0.0f);
  EXPECT_TRUE(std::isnan(sum[2]));
  EXPECT_TRUE(std::isfinite(sum[3]));
}

TEST_P(CpuKernels, GradientMatchesLoops) {
  for (int round = 0; round < 40; ++round) {
    const bool bf16 = kernels().gradient_bf16 != nullptr && round % 2 == 1;
    const int keys = 2 * pick(1, 32);
    const int valid = pick(0, keys);
    const int queries = 16 * pick(1, 4);
    const float scale = 0.3f;
    std::vector<float> s = values(static_cast<std::size_t>(keys * queries), 3.0f);
    std::vector<float> dp = values(s.size());
    std::vector<float> lse = values(static_cast<std::size_t>(queries), 2.0f);
    std::vector<float> delta = values(lse.size());
    lse.back() = kInf;  // no query there
    const std::vector<float> scores = s, products = dp;
    std::vector<std::uint16_t> p(s.size(), 0x7fc0), ds(s.size(), 0x7fc0);
    std::vector<std::uint32_t> pairs(s.size() / 2, 0x7fc07fc0);
    const GradientBlock block{s.data(),  dp.data(),   queries,     keys,         valid,
                              queries,   scale,       lse.data(),  delta.data(), p.data(),
                              ds.data(), queries / 2, pairs.data()};
    (bf16 ? kernels().gradient_bf16 : kernels().gradient_f32)(block);
    for (int i = 0; i < keys; ++i) {
      for (int j = 0; j < queries; ++j) {
        const std::size_t at = static_cast<std::size_t>(i * queries + j);
        const std::size_t column = static_cast<std::size_t>(j);
        double want_p = std::exp(double{scores[at]} * scale - lse[column]);
        double want_ds = want_p * (double{products[at]} - delta[column]);
        if (i >= valid) want_p = want_ds = 0.0;
        const double tolerance = bf16 ? 0.004 : 2e-6;
        ASSERT_NEAR(bf16 ? widened(p[at]) : s[at], want_p, tolerance * want_p + 1e-37);
        ASSERT_NEAR(bf16 ? widened(ds[at]) : dp[at], want_ds,
                    tolerance * (std::abs(want_ds) + want_p) + 1e-37);
        if (!bf16) continue;
        const std::uint32_t word = pairs[static_cast<std::size_t>(i / 2 * queries + j)];
        ASSERT_EQ(static_cast<std::uint16_t>(i % 2 == 0 ? word & 0xffffU : word >> 16), ds[at]);
      }
    }
  }
}

TEST_P(CpuKernels, PacksMoveEveryWord) {
  for (int round = 0; round < 30; ++round) {
    const int count = pick(0, 64);
    const int columns = 16 * pick((count + 15) / 16 > 0 ? (count + 15) / 16 : 1, 4);
    const int d = 16 * pick(1, 16);
    std::vector<std::vector<std::uint16_t>> tokens;
    std::vector<const void*> rows;
    for (int i = 0; i < count; ++i) {
      tokens.emplace_back(static_cast<std::size_t>(d) + 1);
      for (auto& x : tokens.back()) x = static_cast<std::uint16_t>(pick(0, 0xffff));
      // Half of the rows lie at an odd 16-bit place.
    }
    for (int i = 0; i < count; ++i)
      rows.push_back(tokens[static_cast<std::size_t>(i)].data() + i % 2);
    const auto token = [&](int i, int e) -> std::uint32_t {
      if (i >= count || e >= d) return 0;
      return tokens[static_cast<std::size_t>(i)][static_cast<std::size_t>(e + i % 2)];
    };
    const int out_words = d / 2 + pick(0, 16);
    std::vector<std::uint32_t> out(static_cast<std::size_t>(out_words * columns), 0xdeadbeef);
    kernels().transpose_words(rows.data(), count, d / 2, out.data(), columns, columns, out_words);
    for (int w = 0; w < out_words; ++w) {
      for (int i = 0; i < columns; ++i) {
        ASSERT_EQ(out[static_cast<std::size_t>(w * columns + i)],
                  token(i, 2 * w) | token(i, 2 * w + 1) << 16);
      }
    }
    const int pairs = columns / 2;
    std::vector<std::uint32_t> packed(static_cast<std::size_t>(pairs * d), 0xdeadbeef);
    std::vector<float> bf16(2 * packed.size(), kNan), f16 = bf16;
    kernels().interleave_rows(rows.data(), count, d, packed.data(), pairs);
    kernels().expand_pairs(DType::bf16, packed.data(), pairs, d, bf16.data());
    kernels().expand_pairs(DType::f16, packed.data(), pairs, d, f16.data());
    for (int i = 0; i < 2 * pairs; ++i) {
      for (int e = 0; e < d; ++e) {
        const int first = e / kPanel * kPanel;
        const int width = std::min(kPanel, d - first);
        const std::uint32_t word =
            packed[static_cast<std::size_t>(first * pairs + i / 2 * width + e - first)];
        ASSERT_EQ(i % 2 == 0 ? word & 0xffffU : word >> 16, token(i, e));
        const std::size_t at = static_cast<std::size_t>(2 * first * pairs + i * width + e - first);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(bf16[at]), token(i, e) << 16);
        const std::uint16_t half = static_cast<std::uint16_t>(token(i, e));
        float want;
        scalar_kernels().widen(DType::f16, &half, &want, 1);
        ASSERT_TRUE(f16[at] == want || (std::isnan(f16[at]) && std::isnan(want)));
      }
    }
  }
}

TEST_P(CpuKernels, ConversionsAreExactAndRoundToNearestEven) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(all.size(), kNan);
  kernels().widen(DType::f16, all.data(), wide.data(), 65536);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31);
    const int mantissa = static_cast<int>(i & 1023);
    double want =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) want = mantissa == 0 ? kInf : kNan;
    if ((i & 0x8000) != 0) want = -want;
    ASSERT_TRUE(wide[i] == want || (std::isnan(want) && std::isnan(wide[i]))) << i;
    ASSERT_TRUE(std::isnan(want) || std::signbit(wide[i]) == ((i & 0x8000) != 0)) << i;
  }
  // Around every value: the halves between neighbours, and a hair to either side.
  for (const DType dtype : {DType::f16, DType::bf16}) {
    kernels().widen(dtype, all.data(), wide.data(), 65536);
    std::vector<float> probe;
    std::vector<std::uint16_t> want;
    for (std::size_t i = 0; i < 65535; ++i) {
      const float low = wide[i];
      probe.push_back(low);
      want.push_back(all[i]);
      if (!std::isfinite(low) || !std::isfinite(wide[i + 1]) || i == 32767) continue;
      const float middle = static_cast<float>((double{low} + wide[i + 1]) / 2);
      if (middle == low || middle == wide[i + 1]) continue;  // fp32 subnormals are no finer
      const bool even = i % 2 == 0;
      probe.insert(probe.end(),
                   {std::nextafter(middle, low), middle, std::nextafter(middle, wide[i + 1])});
      want.insert(want.end(), {all[i], all[even ? i : i + 1], all[i + 1]});
    }
    std::vector<std::uint16_t> got(probe.size(), 0xdead);
    kernels().narrow(dtype, probe.data(), got.data(), static_cast<std::int64_t>(probe.size()));
    for (std::size_t i = 0; i < probe.size(); ++i) {
      if (std::isnan(probe[i])) {
        float back;
        kernels().widen(dtype, &got[i], &back, 1);
        ASSERT_TRUE(std::isnan(back)) << probe[i];
      } else {
        ASSERT_EQ(got[i], want[i]) << vidsparse::size_of(dtype) << " " << probe[i];
      }
    }
    const float huge[3] = {3e38f * 1.2f, -65520.0f, 65519.9f};
    std::uint16_t rounded[3];
    kernels().narrow(DType::f16, huge, rounded, 3);
    EXPECT_EQ(rounded[0], 0x7c00);
    EXPECT_EQ(rounded[1], 0xfc00);
    EXPECT_EQ(rounded[2], 0x7bff);
  }
}

TEST_P(CpuKernels, TokenRowsMatchLoops) {
  for (int round = 0; round < 30; ++round) {
    const DType dtype = round % 3 == 0 ? DType::f32 : round % 3 == 1 ? DType::f16 : DType::bf16;
    const int d = 16 * pick(1, 16);
    const auto row = [&](std::vector<float>& exact) {  // rounded to dtype, and its value
      const std::vector<float> source = values(static_cast<std::size_t>(d));
      std::vector<std::uint8_t> stored(static_cast<std::size_t>(d) * vidsparse::size_of(dtype));
      kernels().narrow(dtype, source.data(), stored.data(), d);
      exact.resize(source.size());
      kernels().widen(dtype, stored.data(), exact.data(), d);
      return stored;
    };
    std::vector<float> dout, out, gate;
    const auto dout_row = row(dout), out_row = row(out), gate_row = row(gate);
    const std::vector<float> coarse = values(static_cast<std::size_t>(d));
    const bool scalar = pick(0, 1) == 1;
    const float gate_scalar = value();
    const auto gate_at = [&](std::size_t i) { return scalar ? gate_scalar : gate[i]; };
    std::vector<std::uint8_t> dgate(dout_row.size(), 0xff);
    std::vector<float> dcoarse = values(static_cast<std::size_t>(d));
    const std::vector<float> before = dcoarse;
    const float delta = kernels().prepare_row({dtype, dout_row.data(), out_row.data(),
                                               scalar ? nullptr : gate_row.data(), gate_scalar,
                                               coarse.data(), dgate.data(), dcoarse.data(), d});
    double want = 0.0, size = 0.0;
    std::vector<float> gradient(static_cast<std::size_t>(d));
    kernels().widen(dtype, dgate.data(), gradient.data(), d);
    const double ulp = dtype == DType::f32 ? 1e-7 : dtype == DType::f16 ? 5e-4 : 4e-3;
    for (std::size_t i = 0; i < dout.size(); ++i) {
      const double term = double{dout[i]} * (out[i] - double{gate_at(i)} * coarse[i]);
      want += term;
      size += std::abs(term) + std::abs(dout[i] * out[i]);
      ASSERT_NEAR(gradient[i], dout[i] * coarse[i], ulp * std::abs(dout[i] * coarse[i]) + 1e-7);
      ASSERT_NEAR(dcoarse[i], before[i] + dout[i] * gate_at(i), 1e-6 * (1 + std::abs(dcoarse[i])));
    }
    ASSERT_NEAR(delta, want, 1e-6 * size);
    ASSERT_NEAR(
        kernels().dot(dout.data(), out.data(), d - 3),
        [&] {
          double sum = 0.0;
          for (std::size_t i = 0; i + 3 < dout.size(); ++i) sum += double{dout[i]} * out[i];
          return sum;
        }(),
        1e-6 * size);

    const float factor = value();
    const std::vector<float> acc = values(static_cast<std::size_t>(d));
    std::vector<std::uint8_t> finished(dout_row.size(), 0xff);
    kernels().finish_row({acc.data(), factor, coarse.data(), scalar ? nullptr : gate_row.data(),
                          gate_scalar, dtype, finished.data(), d});
    kernels().widen(dtype, finished.data(), gradient.data(), d);
    for (std::size_t i = 0; i < acc.size(); ++i) {
      const double fine = double{acc[i]} * factor, pooled = double{gate_at(i)} * coarse[i];
      ASSERT_NEAR(gradient[i], fine + pooled,
                  ulp * std::abs(fine + pooled) + 1e-6 * (std::abs(fine) + std::abs(pooled)));
    }
    std::vector<const void*> rows{dout_row.data(), out_row.data(), gate_row.data()};
    std::vector<float> sum(static_cast<std::size_t>(d), kNan);
    kernels().sum_rows(dtype, rows.data(), 3, d, sum.data());
    for (std::size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], dout[i] + out[i] + gate[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuKernels, ::testing::ValuesIn(tables()),
                         [](const auto& entry) { return std::string(entry.param.name); });

}  // namespace
