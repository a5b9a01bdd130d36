#pragma once

#include "core/backend.hpp"

namespace vidsparse::core {

/// The rules of a Problem that do not depend on a backend; throws Error.
void check_problem(const Problem& problem);

/// The rules of each call; throws Error naming the member that breaks them.
void check(const Setting& setting, const PoolArgs& args);
void check(const Setting& setting, const SelectArgs& args);
void check(const Setting& setting, const AttendArgs& args);
void check(const Setting& setting, const ForwardArgs& args);
void check(const Setting& setting, const BackwardArgs& args);

void check_workspace(Workspace workspace, std::size_t needed);

}  // namespace vidsparse::core
