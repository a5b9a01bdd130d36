#pragma once

#include <cstddef>

#include "cpu/sides.hpp"
#include "vidsparse/plan.hpp"

namespace vidsparse::cpu {

// The stages of the op, one file each. `*_bytes` is the workspace a stage needs for the same
// arguments; it depends on the problem and the number of threads, never on data. Results depend on
// neither threads nor workspace.

std::size_t pool_bytes(const Context& context, const PoolArgs& args);
void pool(const Context& context, const PoolArgs& args, Workspace workspace);

std::size_t select_bytes(const Context& context, const SelectArgs& args);
void select(const Context& context, const SelectArgs& args, Workspace workspace);

std::size_t attend_bytes(const Context& context, const AttendArgs& args);
void attend(const Context& context, const AttendArgs& args, Workspace workspace);

std::size_t backward_bytes(const Context& context, const BackwardArgs& args);
void backward(const Context& context, const BackwardArgs& args, Workspace workspace);

}  // namespace vidsparse::cpu
