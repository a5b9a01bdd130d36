#pragma once

#include <string>

#include "vidsparse/error.hpp"

namespace vidsparse::tools {

/// Bad input: main prints "ARGUMENT: expected EXPECTED, got GOT" and exits with 2.
[[noreturn]] void refuse(const std::string& argument, const std::string& expected,
                         const std::string& got);

/// For an error that has no expected value (disk full, unreadable file).
[[noreturn]] void refuse(const std::string& argument, const std::string& reason);

/// One printable line of at most `limit` bytes: control characters, and anything that could break
/// out of an error line, become '?'. For text taken from files and from the command line.
std::string printable(const std::string& text, std::size_t limit = 200);

}  // namespace vidsparse::tools
