#pragma once

#include <atomic>

#include "cpu/kernels.hpp"

// The bf16 product on AMX tiles, over any `Tiles` with one function per instruction: the hardware's
// in isa_amx.cpp, a software emulation in the tests. Every tile is 16 rows of 64 bytes: 16 words of
// depth in A, 16 columns in B and C. Blocks are 2x2 tiles of C, numbered 0..3 by rows; A in 4 and
// 5, B in 6 and 7.

namespace vidsparse::cpu {
namespace {

inline constexpr int kTile = 16;

/// C[R tiles][N tiles] at `row`, `column` of panel number `panel`, `width` columns wide.
/// Block `nth` of `blocks`: tells its part of what is to be prefetched.
template <class Tiles, int R, int N>
void amx_block(const Product& p, int nth, int blocks, int row, int panel, int column, int width) {
  float* c = p.c + row * p.ldc + panel * kPanel + column;
  const std::ptrdiff_t c_stride = p.ldc * static_cast<std::ptrdiff_t>(sizeof(float));
  const auto at = [&](int r, int n) { return c + r * kTile * p.ldc + n * kTile; };
  if (p.accumulate) {
    Tiles::template load<0>(at(0, 0), c_stride);
    if constexpr (N == 2) Tiles::template load<1>(at(0, 1), c_stride);
    if constexpr (R == 2) Tiles::template load<2>(at(1, 0), c_stride);
    if constexpr (R == 2 && N == 2) Tiles::template load<3>(at(1, 1), c_stride);
  } else {
    Tiles::template zero<0>();
    if constexpr (N == 2) Tiles::template zero<1>();
    if constexpr (R == 2) Tiles::template zero<2>();
    if constexpr (R == 2 && N == 2) Tiles::template zero<3>();
  }
  for (int t = 0; t < p.count; ++t) {
    const Term& term = p.terms[t];
    const auto* a = static_cast<const std::uint32_t*>(term.a) + row * term.lda;
    const auto* b = static_cast<const std::uint32_t*>(term.b) +
                    static_cast<std::ptrdiff_t>(panel) * kPanel * term.depth + column;
    const std::ptrdiff_t a_stride = term.lda * 4;
    const std::ptrdiff_t b_stride = static_cast<std::ptrdiff_t>(width) * 4;
    const char* ahead = static_cast<const char*>(term.ahead);
    std::ptrdiff_t step = 0;
    if (ahead != nullptr) {
      step = (term.ahead_bytes + blocks * term.depth - 1) / (blocks * term.depth) * kTile;
      ahead += nth * (term.depth / kTile) * step;
    }
    for (int k = 0; k < term.depth; k += kTile) {
      for (std::ptrdiff_t byte = 0; byte < step; byte += 64) Tiles::prefetch(ahead + byte);
      ahead += step;
      Tiles::template load<4>(a + k, a_stride);
      Tiles::template load<6>(b + static_cast<std::ptrdiff_t>(k) * width, b_stride);
      Tiles::template dot<0, 4, 6>();
      if constexpr (N == 2) {
        Tiles::template load<7>(b + static_cast<std::ptrdiff_t>(k) * width + kTile, b_stride);
        Tiles::template dot<1, 4, 7>();
      }
      if constexpr (R == 2) {
        Tiles::template load<5>(a + kTile * term.lda + k, a_stride);
        Tiles::template dot<2, 5, 6>();
        if constexpr (N == 2) Tiles::template dot<3, 5, 7>();
      }
    }
  }
  Tiles::template store<0>(at(0, 0), c_stride);
  if constexpr (N == 2) Tiles::template store<1>(at(0, 1), c_stride);
  if constexpr (R == 2) Tiles::template store<2>(at(1, 0), c_stride);
  if constexpr (R == 2 && N == 2) Tiles::template store<3>(at(1, 1), c_stride);
}

template <class Tiles, int N>
void amx_strip(const Product& p, int& nth, int blocks, int panel, int column, int width) {
  int row = 0;
  for (; row + kTile < p.m; row += 2 * kTile)
    amx_block<Tiles, 2, N>(p, nth++, blocks, row, panel, column, width);
  if (row < p.m) amx_block<Tiles, 1, N>(p, nth++, blocks, row, panel, column, width);
}

/// Depths are multiples of 16 words, rows are computed up to the next multiple of 16. Compilers do
/// not know which memory a tile instruction touches, hence the fences.
template <class Tiles>
void amx_product(const Product& p) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const int blocks = ((p.m + 2 * kTile - 1) / (2 * kTile)) * ((p.n + 2 * kTile - 1) / (2 * kTile));
  int nth = 0;
  for (int first = 0; first < p.n; first += kPanel) {
    const int width = p.n - first < kPanel ? p.n - first : kPanel;
    int column = 0;
    for (; column + kTile < width; column += 2 * kTile) {
      amx_strip<Tiles, 2>(p, nth, blocks, first / kPanel, column, width);
    }
    if (column < width) amx_strip<Tiles, 1>(p, nth, blocks, first / kPanel, column, width);
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

}  // namespace
}  // namespace vidsparse::cpu
