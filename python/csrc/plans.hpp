#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "registry.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse::torch_ops {

/// Four integers a segment, as python/vidsparse/sequence.py encodes them.
Sequence decode_sequence(const std::vector<std::int64_t>& code);

/// `sizes`: tile sides a, b, c, then B, H, G, D and the dtype's number.
Problem decode_problem(const std::vector<std::int64_t>& query, const std::vector<std::int64_t>& key,
                       const std::vector<std::int64_t>& sizes);

Device decode_device(std::int64_t kind, std::int64_t index);

Registry<Plan>& plans();

/// torch's own threads, handed out one task at a time, since tiles differ in work.
ParallelFor torch_threads();

}  // namespace vidsparse::torch_ops
