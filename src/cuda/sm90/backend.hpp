#pragma once

#include "core/backend.hpp"

namespace vidsparse::cuda::sm90 {

const core::Backend& backend();

}  // namespace vidsparse::cuda::sm90
