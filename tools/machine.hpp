#pragma once

#include <string>

namespace vidsparse::tools {

/// The processor's name as the system gives it, "unknown" where it does not.
std::string cpu_name();

/// Now, UTC: "2026-11-23T10:45:00Z".
std::string utc_now();

/// Compiler and build type of this program.
std::string compiler_text();

}  // namespace vidsparse::tools
