#pragma once

#include "vidsparse/plan.hpp"
#include "vidsparse/vidsparse.h"

/// A plan of the C interface is one of the C++ interface.
struct vidsparse_plan {
  vidsparse::Plan plan;
};

namespace vidsparse::c {

// From the structs of the C interface to the types of the C++ one. Here only what the C++ types
// cannot express is refused (numbers that are no enumerator, NULL); the rest is the core's to
// judge.

TensorView view_of(const vidsparse_tensor& tensor, const char* name);
TensorRef ref_of(const vidsparse_tensor& tensor, const char* name);
TileMaskView view_of(const vidsparse_mask& mask);
TileMaskRef ref_of(const vidsparse_mask& mask);

Device device_of(const vidsparse_device& device, const char* name);
Problem problem_of(const vidsparse_problem* problem);
PlanOptions options_of(const vidsparse_plan_options* options);
Selection selection_of(const vidsparse_selection* selection);

PoolArgs args_of(const vidsparse_pool_args* args);
SelectArgs args_of(const vidsparse_select_args* args);
AttendArgs args_of(const vidsparse_attend_args* args);
ForwardArgs args_of(const vidsparse_forward_args* args);
BackwardArgs args_of(const vidsparse_backward_args* args);

}  // namespace vidsparse::c
