#pragma once

#include <cstdlib>
#include <string>

namespace vidsparse::testing {

/// A variable of the environment for the length of a scope; unset before and after.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) { set(value); }
  ~Environment() { set(""); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  void set(const std::string& value) const {
#if defined(_WIN32)
    _putenv_s(name_, value.c_str());
#else
    value.empty() ? unsetenv(name_) : setenv(name_, value.c_str(), 1);
#endif
  }

  const char* name_;
};

}  // namespace vidsparse::testing
