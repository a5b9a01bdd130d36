// The five calls and the scratch memory each needs: conversion, then the plan's own.
#include "boundary.hpp"
#include "convert.hpp"

using vidsparse::c::args_of;
using vidsparse::c::guarded;
using vidsparse::c::required;

namespace {

template <class Args>
int workspace_of(const vidsparse_plan* plan, const Args* args, std::size_t* bytes) {
  return guarded([&] {
    required(bytes, "bytes") = required(plan, "plan").plan.workspace_bytes(args_of(args));
  });
}

}  // namespace

int vidsparse_pool_workspace(const vidsparse_plan* plan, const vidsparse_pool_args* args,
                             size_t* bytes) {
  return workspace_of(plan, args, bytes);
}

int vidsparse_pool(const vidsparse_plan* plan, const vidsparse_pool_args* args, void* workspace,
                   size_t workspace_bytes, void* stream) {
  return guarded([&] {
    required(plan, "plan").plan.pool(args_of(args), {workspace, workspace_bytes}, stream);
  });
}

int vidsparse_select_workspace(const vidsparse_plan* plan, const vidsparse_select_args* args,
                               size_t* bytes) {
  return workspace_of(plan, args, bytes);
}

int vidsparse_select(const vidsparse_plan* plan, const vidsparse_select_args* args, void* workspace,
                     size_t workspace_bytes, void* stream) {
  return guarded([&] {
    required(plan, "plan").plan.select(args_of(args), {workspace, workspace_bytes}, stream);
  });
}

int vidsparse_attend_workspace(const vidsparse_plan* plan, const vidsparse_attend_args* args,
                               size_t* bytes) {
  return workspace_of(plan, args, bytes);
}

int vidsparse_attend(const vidsparse_plan* plan, const vidsparse_attend_args* args, void* workspace,
                     size_t workspace_bytes, void* stream) {
  return guarded([&] {
    required(plan, "plan").plan.attend(args_of(args), {workspace, workspace_bytes}, stream);
  });
}

int vidsparse_forward_workspace(const vidsparse_plan* plan, const vidsparse_forward_args* args,
                                size_t* bytes) {
  return workspace_of(plan, args, bytes);
}

int vidsparse_forward(const vidsparse_plan* plan, const vidsparse_forward_args* args,
                      void* workspace, size_t workspace_bytes, void* stream) {
  return guarded([&] {
    required(plan, "plan").plan.forward(args_of(args), {workspace, workspace_bytes}, stream);
  });
}

int vidsparse_backward_workspace(const vidsparse_plan* plan, const vidsparse_backward_args* args,
                                 size_t* bytes) {
  return workspace_of(plan, args, bytes);
}

int vidsparse_backward(const vidsparse_plan* plan, const vidsparse_backward_args* args,
                       void* workspace, size_t workspace_bytes, void* stream) {
  return guarded([&] {
    required(plan, "plan").plan.backward(args_of(args), {workspace, workspace_bytes}, stream);
  });
}
