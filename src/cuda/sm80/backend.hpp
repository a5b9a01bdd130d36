#pragma once

#include "core/backend.hpp"

namespace vidsparse::cuda::sm80 {

const core::Backend& backend();

}  // namespace vidsparse::cuda::sm80
