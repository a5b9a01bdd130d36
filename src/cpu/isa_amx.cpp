#include <immintrin.h>

#include "cpu/amx_product.hpp"
#include "cpu/isa.hpp"

namespace vidsparse::cpu {
namespace {

/// What ldtilecfg reads: palette 1, eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

/// One function per instruction (Intel SDM volume 2, chapter on AMX). The intrinsics want literal
/// tile numbers.
struct HardwareTiles {
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
  template <int T>
  static void load(const void* base, std::ptrdiff_t stride) {
    if constexpr (T == 0) _tile_loadd(0, base, stride);
    if constexpr (T == 1) _tile_loadd(1, base, stride);
    if constexpr (T == 2) _tile_loadd(2, base, stride);
    if constexpr (T == 3) _tile_loadd(3, base, stride);
    if constexpr (T == 4) _tile_loadd(4, base, stride);
    if constexpr (T == 5) _tile_loadd(5, base, stride);
    if constexpr (T == 6) _tile_loadd(6, base, stride);
    if constexpr (T == 7) _tile_loadd(7, base, stride);
  }
  template <int T>
  static void store(void* base, std::ptrdiff_t stride) {
    if constexpr (T == 0) _tile_stored(0, base, stride);
    if constexpr (T == 1) _tile_stored(1, base, stride);
    if constexpr (T == 2) _tile_stored(2, base, stride);
    if constexpr (T == 3) _tile_stored(3, base, stride);
  }
  template <int T>
  static void zero() {
    if constexpr (T == 0) _tile_zero(0);
    if constexpr (T == 1) _tile_zero(1);
    if constexpr (T == 2) _tile_zero(2);
    if constexpr (T == 3) _tile_zero(3);
  }
  template <int C, int A, int B>
  static void dot() {
    if constexpr (C == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (C == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (C == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (C == 3) _tile_dpbf16ps(3, 5, 7);
  }
};

void enter() {
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
}

void leave() { _tile_release(); }

}  // namespace

const Kernels& amx_kernels() {
  static const Kernels kernels = [] {
    Kernels table = avx512_bf16_kernels();
    table.name = "amx";
    table.enter = enter;
    table.leave = leave;
    table.product_bf16 = amx_product<HardwareTiles>;
    table.depth_multiple = kTile;
    return table;
  }();
  return kernels;
}

}  // namespace vidsparse::cpu
