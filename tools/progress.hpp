#pragma once

#include <cstddef>
#include <string>

namespace vidsparse::tools {

/// A bar on stderr, redrawn in place, while it lives; nothing where stderr is no terminal. Our own:
/// Debian 12 packages no progress bar for C++.
class ProgressBar {
 public:
  explicit ProgressBar(std::string what);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(std::size_t done, std::size_t all);

 private:
  std::string what_;
  bool terminal_;
};

/// The most memory this process has held at once, bytes; 0 where the system does not tell.
std::size_t peak_memory();

}  // namespace vidsparse::tools
