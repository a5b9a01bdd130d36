#include "progress.hpp"

#include <cstdio>

#ifdef _WIN32
#include <io.h>
#else
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace vidsparse::tools {
namespace {

bool stderr_is_terminal() {
#ifdef _WIN32
  return _isatty(_fileno(stderr)) != 0;
#else
  return ::isatty(STDERR_FILENO) != 0;
#endif
}

}  // namespace

ProgressBar::ProgressBar(std::string what)
    : what_(std::move(what)), terminal_(stderr_is_terminal()) {}

ProgressBar::~ProgressBar() {
  if (terminal_) std::fprintf(stderr, "\r\033[K");
}

void ProgressBar::show(std::size_t done, std::size_t all) {
  if (!terminal_ || all == 0) return;
  constexpr std::size_t kCells = 30;
  const std::size_t filled = done * kCells / all;
  std::fprintf(stderr, "\r%s [%s%s] %zu/%zu", what_.c_str(), std::string(filled, '#').c_str(),
               std::string(kCells - filled, '.').c_str(), done, all);
  std::fflush(stderr);
}

std::size_t peak_memory() {
#ifdef _WIN32
  return 0;
#else
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace vidsparse::tools
