#pragma once

#include "core/backend.hpp"

namespace vidsparse::reference {

/// "reference": the whole op in fp64 loops on the CPU, for any problem; on request only.
const core::Backend& backend();

}  // namespace vidsparse::reference
