#include "refuse.hpp"

namespace vidsparse::tools {

void refuse(const std::string& argument, const std::string& expected, const std::string& got) {
  refuse(argument, "expected " + expected + ", got " + got);
}

void refuse(const std::string& argument, const std::string& reason) {
  throw Error(ErrorCode::invalid_argument, argument, reason);
}

std::string printable(const std::string& text, std::size_t limit) {
  std::string line;
  for (const char c : text) {
    if (line.size() >= limit) return line + "...";
    const auto code = static_cast<unsigned char>(c);
    line += code < 0x20 || code == 0x7f ? '?' : c;
  }
  return line;
}

}  // namespace vidsparse::tools
