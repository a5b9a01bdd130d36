#pragma once

#include <cstddef>
#include <cstdint>

#include "vidsparse/export.hpp"

namespace vidsparse {

/// Element types. q, k, v, gate and their gradients are one of the four floating types; i32 holds
/// sizes and index lists, i64 the words of bitmaps, u8 bool maps. Numbers are those of the C
/// interface (`vidsparse_dtype`).
enum class DType : std::uint8_t { f64 = 0, f32 = 1, f16 = 2, bf16 = 3, i32 = 4, i64 = 5, u8 = 6 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr bool is_floating(DType dtype) { return dtype <= DType::bf16; }

/// What sums, log-sum-exps and pooled tensors are kept in: f64 for f64 input, else f32.
constexpr DType accumulator_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

/// "bf16", "f32", ...: as in safetensors, lower case.
VIDSPARSE_API const char* name_of(DType dtype);

}  // namespace vidsparse
