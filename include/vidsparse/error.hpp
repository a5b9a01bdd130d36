#pragma once

#include <stdexcept>
#include <string>

#include "vidsparse/export.hpp"

namespace vidsparse {

/// Why a call was refused. The numbers are those of the C interface (`vidsparse_status`).
enum class ErrorCode {
  invalid_argument = 1,  ///< a value breaks the rules of the op; `Error::argument()` names it
  unsupported = 2,       ///< legal, but no backend (or not the forced one) can run it here
  out_of_memory = 3,     ///< memory could not be had; of the C interface alone
  internal = 4,          ///< a bug in this library or in the driver below it
};

/// The only exception this library throws, but for std::bad_alloc where plans, masks and lists find
/// no memory. `what()` is one line of the form "ARGUMENT: expected EXPECTED, got GOT".
class VIDSPARSE_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string argument, const std::string& message);
  ~Error() override;

  ErrorCode code() const noexcept { return code_; }
  /// The offending argument as the caller wrote it (`top_k`, `q`, `tile`), empty if there is none.
  const std::string& argument() const noexcept { return argument_; }

 private:
  ErrorCode code_;
  std::string argument_;
};

}  // namespace vidsparse
