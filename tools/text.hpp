#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace vidsparse::tools {

/// Decimal prefixes, three significant digits: "15.3 MB", "640 B".
std::string bytes_text(double bytes);

/// "45.1 GFLOP", "1.20 TFLOP".
std::string flops_text(double flops);

/// "21.9 %" of a share of 1.
std::string percent_text(double share);

/// Indented, for the screen and for files. Bytes that are no UTF-8 (paths, environment variables)
/// become U+FFFD instead of an error.
std::string json_text(const nlohmann::ordered_json& value);

}  // namespace vidsparse::tools
