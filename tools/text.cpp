#include "text.hpp"

#include <array>
#include <cmath>
#include <cstdio>

namespace vidsparse::tools {
namespace {

std::string with_prefix(double value, const char* unit) {
  constexpr std::array<const char*, 7> kPrefixes{"", "k", "M", "G", "T", "P", "E"};
  std::size_t prefix = 0;
  // 999.5 would print as 1000 of the smaller unit.
  while (value >= 999.5 && prefix + 1 < kPrefixes.size()) {
    value /= 1000;
    ++prefix;
  }
  const int decimals = prefix == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f %s%s", decimals, value, kPrefixes[prefix], unit);
  return text.data();
}

}  // namespace

std::string bytes_text(double bytes) { return with_prefix(bytes, "B"); }

std::string flops_text(double flops) { return with_prefix(flops, "FLOP"); }

std::string percent_text(double share) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.1f %%", 100 * share);
  return text.data();
}

std::string json_text(const nlohmann::ordered_json& value) {
  return value.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace vidsparse::tools
