#include "boundary.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>

#include "vidsparse/error.hpp"
#include "vidsparse/version.hpp"

namespace vidsparse::c {
namespace {

/// Fixed size so that recording a failure cannot fail; longer texts are cut. A refusal with every
/// backend's reason is the longest there is.
struct LastFailure {
  std::array<char, 4096> message{};
  std::array<char, 128> argument{};
};

LastFailure& last_failure() noexcept {
  thread_local LastFailure failure;
  return failure;
}

template <std::size_t Size>
void keep(std::array<char, Size>& buffer, const char* text) noexcept {
  const std::size_t length = std::min(std::strlen(text), Size - 1);
  std::memcpy(buffer.data(), text, length);
  buffer[length] = '\0';
}

int keep(int status, const char* argument, const char* message) noexcept {
  keep(last_failure().argument, argument);
  keep(last_failure().message, message);
  return status;
}

}  // namespace

int record_failure() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return keep(static_cast<int>(error.code()), error.argument().c_str(), error.what());
  } catch (const std::bad_alloc&) {
    return keep(VIDSPARSE_OUT_OF_MEMORY, "", "memory: expected enough, got none");
  } catch (const std::length_error&) {
    return keep(VIDSPARSE_OUT_OF_MEMORY, "", "memory: expected a size that can be had, got more");
  } catch (const std::exception& error) {
    return keep(VIDSPARSE_INTERNAL, "", error.what());
  } catch (...) {
    return keep(VIDSPARSE_INTERNAL, "", "internal: expected an Error, got an unknown exception");
  }
}

}  // namespace vidsparse::c

const char* vidsparse_last_error(void) { return vidsparse::c::last_failure().message.data(); }

const char* vidsparse_last_error_argument(void) {
  return vidsparse::c::last_failure().argument.data();
}

const char* vidsparse_status_name(int status) {
  switch (status) {
    case VIDSPARSE_OK:
      return "ok";
    case VIDSPARSE_INVALID_ARGUMENT:
      return "invalid argument";
    case VIDSPARSE_UNSUPPORTED:
      return "unsupported";
    case VIDSPARSE_OUT_OF_MEMORY:
      return "out of memory";
    case VIDSPARSE_INTERNAL:
      return "internal error";
    default:
      return "unknown status";
  }
}

const char* vidsparse_version(void) { return vidsparse::version(); }
