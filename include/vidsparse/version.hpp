#pragma once

#include "vidsparse/export.hpp"

namespace vidsparse {

/// "MAJOR.MINOR.PATCH" of the library that is loaded.
VIDSPARSE_API const char* version();

}  // namespace vidsparse
