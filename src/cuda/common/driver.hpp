#pragma once

namespace vidsparse::cuda {

/// A function of the driver, as it was in `version` of CUDA (12000 for 12.0), by way of the
/// run-time library, so that nothing links libcuda. Null where the driver is missing or has none.
void* driver_entry(const char* name, unsigned version);

}  // namespace vidsparse::cuda
