#pragma once

#include "core/backend.hpp"

namespace vidsparse::cpu {

const core::Backend& backend();

}  // namespace vidsparse::cpu
