#pragma once

#include <cstdint>
#include <string>

#include "vidsparse/error.hpp"
#include "vidsparse/tensor.hpp"

namespace vidsparse::core {

/// Throws invalid_argument "ARGUMENT: expected EXPECTED, got GOT".
[[noreturn]] inline void refuse(const std::string& argument, const std::string& expected,
                                const std::string& got) {
  throw Error(ErrorCode::invalid_argument, argument, "expected " + expected + ", got " + got);
}

/// a * b for non-negative factors; throws naming `argument` when it does not fit 63 bits.
inline std::int64_t checked_product(const char* argument, std::int64_t a, std::int64_t b) {
  if (b != 0 && a > INT64_MAX / b) {
    refuse(argument, "a product below 2^63", std::to_string(a) + " * " + std::to_string(b));
  }
  return a * b;
}

inline std::int64_t checked_sum(const char* argument, std::int64_t a, std::int64_t b) {
  if (a > INT64_MAX - b) {
    refuse(argument, "a sum below 2^63", std::to_string(a) + " + " + std::to_string(b));
  }
  return a + b;
}

inline void check_below(const char* argument, std::int64_t index, std::int64_t end) {
  if (index < 0 || index >= end) {
    refuse(argument, "an index in [0, " + std::to_string(end) + ")", std::to_string(index));
  }
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

}  // namespace vidsparse::core
