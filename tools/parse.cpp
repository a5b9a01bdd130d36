#include "parse.hpp"

#include <charconv>
#include <optional>
#include <string_view>

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

/// All of `text` as a decimal number without sign, or nothing (also when it overflows).
std::optional<std::int64_t> parse_count(std::string_view text) {
  if (text.empty() || text.front() == '-' || text.front() == '+') return std::nullopt;
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

/// The numbers between `separator`s, or nothing if one of them is below `least` or is no number.
std::optional<std::vector<std::int64_t>> parse_counts(std::string_view text, char separator,
                                                      std::int64_t least) {
  std::vector<std::int64_t> counts;
  for (;;) {
    const std::size_t stop = text.find(separator);
    const std::optional<std::int64_t> count = parse_count(text.substr(0, stop));
    if (!count || *count < least) return std::nullopt;
    counts.push_back(*count);
    if (stop == std::string_view::npos) return counts;
    text.remove_prefix(stop + 1);
  }
}

template <std::size_t N>
std::array<std::int64_t, N> parse_sides(const std::string& option, const std::string& text,
                                        const std::string& expected) {
  const auto sides = parse_counts(text, 'x', 1);
  if (!sides || sides->size() != N) refuse(option, expected, "\"" + printable(text) + "\"");
  std::array<std::int64_t, N> result{};
  for (std::size_t i = 0; i < N; ++i) result[i] = (*sides)[i];
  return result;
}

}  // namespace

std::array<std::int64_t, 3> parse_box(const std::string& option, const std::string& text) {
  return parse_sides<3>(option, text, "TxHxW with sides of at least 1, such as 21x30x52");
}

std::array<std::int64_t, 2> parse_size(const std::string& option, const std::string& text) {
  return parse_sides<2>(option, text, "WIDTHxHEIGHT with sides of at least 1, such as 320x180");
}

std::vector<std::int64_t> parse_lengths(const std::string& option, const std::string& text) {
  if (text.empty()) return {};
  const auto lengths = parse_counts(text, ',', 0);
  if (!lengths) {
    refuse(option, "segment lengths separated by commas, such as 77,12",
           "\"" + printable(text) + "\"");
  }
  return *lengths;
}

Device parse_device(const std::string& option, const std::string& text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {Device::Kind::cuda, 0};
  if (text.starts_with("cuda:")) {
    const std::optional<std::int64_t> index = parse_count(std::string_view(text).substr(5));
    if (index && *index <= INT32_MAX) return {Device::Kind::cuda, static_cast<int>(*index)};
  }
  refuse(option, "cpu or cuda:INDEX", "\"" + printable(text) + "\"");
}

std::string box_text(const std::array<std::int64_t, 3>& box) {
  return std::to_string(box[0]) + "x" + std::to_string(box[1]) + "x" + std::to_string(box[2]);
}

}  // namespace vidsparse::tools
