#pragma once

#include "core/backend.hpp"
#include "core/workspace.hpp"

namespace vidsparse::core {

/// The arguments of a forward's selection and attention but for the pooled tensors, which each kind
/// of kernels holds in its own way.
struct ForwardStages {
  SelectArgs select;
  AttendArgs attend;
};

/// The mask and, with a gate, oc that the caller does not ask for are taken from the arena: they
/// alone pass from selection to attention.
ForwardStages take_stages(Arena& arena, const Setting& setting, const ForwardArgs& args);

}  // namespace vidsparse::core
