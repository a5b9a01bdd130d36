#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "boundary.hpp"

namespace vidsparse::c {

/// Bounds struct_size before anything behind it is touched: an uninitialised struct is refused
/// rather than read far past its end. Every struct's sides are multiples of 8 bytes, so a size that
/// is not one would cut a field in two.
inline void check_struct_size(std::size_t size, const std::string& name) {
  constexpr std::size_t largest = 65536;
  constexpr std::size_t unit = alignof(std::max_align_t) < 8 ? alignof(std::max_align_t) : 8;
  if (size < sizeof(std::size_t) || size > largest || size % unit != 0) {
    refuse(name + ".struct_size", "sizeof of the struct (see its _init function)",
           std::to_string(size));
  }
}

/// Copies a caller's struct of whatever version: fields it lacks keep those of `defaults`, bytes
/// this library does not know must be zero.
template <class Struct>
Struct read_struct(const Struct* caller, const char* name, const Struct& defaults) {
  const std::size_t size = required(caller, name).struct_size;
  check_struct_size(size, name);
  const auto* bytes = reinterpret_cast<const unsigned char*>(caller);
  if (size > sizeof(Struct) && std::any_of(bytes + sizeof(Struct), bytes + size,
                                           [](unsigned char byte) { return byte != 0; })) {
    refuse(std::string(name) + ".struct_size",
           "at most " + std::to_string(sizeof(Struct)) +
               " in this version of the library, or zeros behind them",
           std::to_string(size));
  }
  Struct copy = defaults;
  std::memcpy(&copy, caller, std::min(size, sizeof(Struct)));
  copy.struct_size = sizeof(Struct);
  return copy;
}

/// Fills in a caller's struct up to its own struct_size, zero past what this library knows.
template <class Struct>
void write_struct(Struct value, Struct* caller, const char* name) {
  const std::size_t size = required(caller, name).struct_size;
  check_struct_size(size, name);
  value.struct_size = size;
  auto* bytes = reinterpret_cast<unsigned char*>(caller);
  std::memcpy(bytes, &value, std::min(size, sizeof(Struct)));
  if (size > sizeof(Struct)) std::memset(bytes + sizeof(Struct), 0, size - sizeof(Struct));
}

}  // namespace vidsparse::c
