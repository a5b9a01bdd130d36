#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "vidsparse/backend.hpp"

namespace vidsparse::tools {

/// "21x30x52" -> {21, 30, 52}: three sides T x H x W, each at least 1. `option` names the argument
/// in the error.
std::array<std::int64_t, 3> parse_box(const std::string& option, const std::string& text);

/// "320x180" -> {320, 180}: width x height, each at least 1.
std::array<std::int64_t, 2> parse_size(const std::string& option, const std::string& text);

/// "77,12" -> {77, 12}: lengths of plain segments, zero allowed; "" -> {}.
std::vector<std::int64_t> parse_lengths(const std::string& option, const std::string& text);

/// "cpu", "cuda:1"; "cuda" is the first.
Device parse_device(const std::string& option, const std::string& text);

/// {21, 30, 52} -> "21x30x52".
std::string box_text(const std::array<std::int64_t, 3>& box);

}  // namespace vidsparse::tools
