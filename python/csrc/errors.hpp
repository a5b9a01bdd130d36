#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "vidsparse/error.hpp"

namespace vidsparse::torch_ops {

[[noreturn]] inline void refuse(const char* argument, const std::string& expected,
                                const std::string& got) {
  throw Error(ErrorCode::invalid_argument, argument,
              std::string(argument) + ": expected " + expected + ", got " + got);
}

/// Runs `body`; an Error leaves as what torch turns into a RuntimeError whose text
/// "vidsparse[CODE:ARGUMENT] TEXT" python/vidsparse/native.py turns back.
template <class Body>
auto translated(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    throw std::runtime_error("vidsparse[" + std::to_string(static_cast<int>(error.code())) + ":" +
                             error.argument() + "] " + error.what());
  }
}

}  // namespace vidsparse::torch_ops
