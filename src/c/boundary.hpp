#pragma once

#include <utility>

#include "core/check.hpp"
#include "vidsparse/vidsparse.h"

namespace vidsparse::c {

using core::refuse;

/// What a pointer parameter points to; NULL is refused by the parameter's name.
template <class T>
T& required(T* pointer, const char* name) {
  if (pointer == nullptr) refuse(name, "a pointer", "NULL");
  return *pointer;
}

/// Call inside a catch block: keeps the exception's text for vidsparse_last_error and gives its
/// status. Allocates nothing, so it also serves when memory has run out.
int record_failure() noexcept;

/// The body of every exported function: no exception crosses the boundary.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return VIDSPARSE_OK;
  } catch (...) {
    return record_failure();
  }
}

}  // namespace vidsparse::c
