#include "vidsparse/error.hpp"

#include <utility>

namespace vidsparse {

Error::Error(ErrorCode code, std::string argument, const std::string& message)
    : std::runtime_error(argument.empty() ? message : argument + ": " + message),
      code_(code),
      argument_(std::move(argument)) {}

Error::~Error() = default;

}  // namespace vidsparse
