#pragma once

#include <string>

#include "vidsparse/backend.hpp"

namespace vidsparse::cuda {

/// Whether a device is there and has exactly the given compute capability (9, 0); the reason names
/// what is missing: the driver, the device, its capability. Never loads a driver that is not there.
Verdict has_capability(const Device& device, int major, int minor);

/// The same for that capability or any newer one; `built` says for which code was built.
Verdict has_capability_from(const Device& device, int major, int minor, const std::string& built);

}  // namespace vidsparse::cuda
