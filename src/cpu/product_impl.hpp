#pragma once

#include "cpu/kernels.hpp"

// Register-blocked product of words, for the `Vec` of the including ISA file. Per panel of B and
// depth block, 128 words deep (32 KB: it stays in L1), all rows of A pass by; a block of C lives in
// registers over the whole depth block, whichever terms that is made of. Internal linkage: see
// vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

struct FmaStep {
  static Vec step(Vec a, Vec b, Vec c) { return Vec::fma(a, b, c); }
};

/// The part of a term that falls into one depth block.
struct Span {
  const float* a;
  const float* b;  ///< of the first panel
  std::ptrdiff_t lda;
  std::ptrdiff_t panel;  ///< words from panel to panel of B
  int first;             ///< depth before this span
  int depth;
  const char* ahead;    ///< to be prefetched
  std::ptrdiff_t step;  ///< bytes of it for every step in depth
};

constexpr int kDepthBlock = 128;
constexpr int kMaxSpans = 16;

/// C[R][N vectors] (+)= sum over spans. `row` and `column` place the block; `width` is the panel's.
/// `nth` block of the pass: tells its part of what is to be prefetched.
template <class Step, int R, int N>
void product_block(const Span* spans, int count, int nth, std::ptrdiff_t row, std::ptrdiff_t panel,
                   std::ptrdiff_t column, std::ptrdiff_t width, float* c, std::ptrdiff_t ldc,
                   bool accumulate) {
  Vec sum[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      sum[r][n] = accumulate ? Vec::load(c + r * ldc + n * Vec::kLanes) : Vec::zero();
    }
  }
  for (int s = 0; s < count; ++s) {
    const std::ptrdiff_t lda = spans[s].lda;
    const float* a = spans[s].a + row * lda + spans[s].first;
    const float* b = spans[s].b + panel * spans[s].panel + spans[s].first * width + column;
    const std::ptrdiff_t step = spans[s].step;
    const char* ahead = spans[s].ahead + nth * spans[s].depth * step;
    // Rows are addressed from every third one: base, base + lda, base + 2 lda need no register
    // more.
    constexpr int kBases = (R + 2) / 3;
    const float* bases[kBases];
    for (int i = 0; i < kBases; ++i) bases[i] = a + 3 * i * lda;
    for (int k = 0; k < spans[s].depth; ++k, b += width, ahead += step) {
      Vec::prefetch(ahead);
      Vec right[N];
      for (int n = 0; n < N; ++n) right[n] = Vec::load(b + n * Vec::kLanes);
      for (int r = 0; r < R; ++r) {
        const Vec left = Vec::broadcast(bases[r / 3] + r % 3 * lda + k);
        for (int n = 0; n < N; ++n) sum[r][n] = Step::step(left, right[n], sum[r][n]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) sum[r][n].store(c + r * ldc + n * Vec::kLanes);
  }
}

/// All rows of a strip N vectors wide. The last block may compute a row more than m, never past the
/// next multiple of 16.
template <class Step, int N>
void product_strip(const Span* spans, int count, int& nth, std::ptrdiff_t panel,
                   std::ptrdiff_t column, std::ptrdiff_t width, float* c, std::ptrdiff_t ldc, int m,
                   bool accumulate) {
  constexpr int kRows = Vec::rows_of_block(N);
  int row = 0;
  const auto block = [&]<int R>() {
    product_block<Step, R, N>(spans, count, nth++, row, panel, column, width, c + row * ldc, ldc,
                              accumulate);
    row += R;
  };
  while (m - row >= kRows) block.template operator()<kRows>();
  if constexpr (kRows > 8) {
    if (m - row > 6) block.template operator()<8>();
  }
  if constexpr (kRows > 6) {
    if (m - row > 4) block.template operator()<6>();
  }
  if constexpr (kRows > 4) {
    if (m - row > 2) block.template operator()<4>();
  }
  while (m - row > 0) block.template operator()<2>();
}

template <class Step>
void product_spans(const Product& p, const Span* spans, int count, bool accumulate) {
  int nth = 0;
  for (int first = 0; first < p.n; first += kPanel) {
    const int width = p.n - first < kPanel ? p.n - first : kPanel;
    const int panel = first / kPanel;
    int column = 0;
    const auto strip = [&]<int N>() {
      product_strip<Step, N>(spans, count, nth, panel, column, width, p.c + first + column, p.ldc,
                             p.m, accumulate);
      column += N * Vec::kLanes;
    };
    constexpr int kWidest = Vec::kMaxWidth;
    while (width - column >= kWidest * Vec::kLanes) strip.template operator()<kWidest>();
    // Only where a panel's width is no multiple of the widest block: 16 lanes.
    if constexpr (kWidest > 2) {
      if (width - column == 3 * Vec::kLanes) strip.template operator()<3>();
      if (width - column == 2 * Vec::kLanes) strip.template operator()<2>();
      if (width - column == Vec::kLanes) strip.template operator()<1>();
    }
  }
}

template <class Step>
void product(const Product& p) {
  bool accumulate = p.accumulate;
  int term = 0;
  int done = 0;  // depth of terms[term] that is behind us
  // Blocks of a pass, never too many: what is left over is fetched by the hardware.
  constexpr int kRows = Vec::rows_of_block(Vec::kMaxWidth);
  const std::ptrdiff_t blocks =
      static_cast<std::ptrdiff_t>((p.m + kRows - 1) / kRows) *
      ((p.n + Vec::kMaxWidth * Vec::kLanes - 1) / (Vec::kMaxWidth * Vec::kLanes));
  do {
    Span spans[kMaxSpans];
    int count = 0;
    int depth = 0;
    while (term < p.count && count < kMaxSpans && depth < kDepthBlock) {
      const Term& t = p.terms[term];
      const int rest = t.depth - done;
      const int take = rest < kDepthBlock - depth ? rest : kDepthBlock - depth;
      spans[count++] = {static_cast<const float*>(t.a),
                        static_cast<const float*>(t.b),
                        t.lda,
                        static_cast<std::ptrdiff_t>(t.depth) * kPanel,
                        done,
                        take,
                        static_cast<const char*>(t.ahead != nullptr ? t.ahead : t.b),
                        0};
      if (t.ahead != nullptr && t.depth > 0) {
        spans[count - 1].ahead += t.ahead_bytes / t.depth * done;
        spans[count - 1].step = (t.ahead_bytes + blocks * t.depth - 1) / (blocks * t.depth);
      }
      depth += take;
      done += take;
      if (done == t.depth) {
        ++term;
        done = 0;
      }
    }
    product_spans<Step>(p, spans, count, accumulate);
    accumulate = true;
  } while (term < p.count);
}

}  // namespace
}  // namespace vidsparse::cpu
