#include "atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>
#include <utility>

#include "refuse.hpp"

#ifdef _WIN32
#include <io.h>
#include <process.h>
#else
#include <unistd.h>
#endif

namespace vidsparse::tools {
namespace {

namespace fs = std::filesystem;

#ifdef _WIN32
int open_new(const fs::path& path) {
  return _wopen(path.c_str(), _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY, _S_IREAD | _S_IWRITE);
}
int open_existing(const fs::path& path) { return _wopen(path.c_str(), _O_RDWR | _O_BINARY); }
long write_some(int file, const char* data, std::size_t size) {
  return _write(file, data, static_cast<unsigned>(std::min<std::size_t>(size, 1 << 30)));
}
int flush(int file) { return _commit(file); }
int close_file(int file) { return _close(file); }
int process_id() { return _getpid(); }
#else
int open_new(const fs::path& path) {
  return ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
}
int open_existing(const fs::path& path) { return ::open(path.c_str(), O_RDWR | O_CLOEXEC); }
long write_some(int file, const char* data, std::size_t size) { return ::write(file, data, size); }
int flush(int file) { return ::fsync(file); }
int close_file(int file) { return ::close(file); }
int process_id() { return static_cast<int>(::getpid()); }
#endif

fs::path temporary_name(const fs::path& path) {
  static std::atomic<unsigned> counter{0};
  // Extension last: programs such as ffmpeg choose the format by it.
  return path.parent_path() /
         ("." + path.stem().string() + "." + std::to_string(process_id()) + "-" +
          std::to_string(counter++) + ".tmp" + path.extension().string());
}

/// The name of a temporary where a signal's handler can read it: there it may neither allocate nor
/// lock. A file beyond the last place, or a longer name, outlives a signal.
struct Standing {
  enum State : int { free, filling, named };
  std::atomic<int> state{free};
  std::array<char, 4096> name{};
};
std::array<Standing, 32> standing;

void remember(const fs::path& path) {
  const std::string name = path.string();
  if (name.size() >= standing[0].name.size()) return;
  for (Standing& place : standing) {
    int expected = Standing::free;
    if (!place.state.compare_exchange_strong(expected, Standing::filling)) continue;
    std::memcpy(place.name.data(), name.c_str(), name.size() + 1);
    place.state = Standing::named;
    return;
  }
}

void forget(const fs::path& path) {
  const std::string name = path.string();
  for (Standing& place : standing) {
    if (place.state == Standing::named && name == place.name.data()) place.state = Standing::free;
  }
}

#ifndef _WIN32
extern "C" void remove_standing(int signal) {
  for (const Standing& place : standing) {
    if (place.state == Standing::named) ::unlink(place.name.data());
  }
  ::raise(signal);  // by now it has its default action again
}
#endif

std::string quoted(const fs::path& path) { return "\"" + printable(path.string()) + "\""; }

}  // namespace

AtomicFile::AtomicFile(std::string argument, fs::path path)
    : argument_(std::move(argument)), path_(std::move(path)) {
  std::error_code ignored;
  if (path_.filename().empty() || fs::is_directory(path_, ignored)) {
    refuse(argument_, "a file to write", quoted(path_));
  }
  // A dangling or live symbolic link is followed, so that the link itself survives the rename.
  if (fs::is_symlink(path_, ignored)) {
    const fs::path target = fs::weakly_canonical(path_, ignored);
    if (!target.empty()) path_ = target;
  }
  if (fs::exists(path_, ignored) && !fs::is_regular_file(path_, ignored)) {
    refuse(argument_, "a regular file (outputs are renamed into place)", quoted(path_));
  }
  const fs::path name = temporary_name(path_);
  remember(name);
  descriptor_ = open_new(name);
  if (descriptor_ < 0) {
    const int error = errno;
    forget(name);
    fail("cannot be created", error);
  }
  temporary_ = name;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : argument_(std::move(other.argument_)),
      path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close_file(descriptor_);
  if (temporary_.empty()) return;
  std::error_code ignored;
  fs::remove(temporary_, ignored);
  forget(temporary_);
}

void AtomicFile::fail(const std::string& action, int error) {
  refuse(argument_, quoted(path_) + " " + action + ": " + std::generic_category().message(error));
}

void AtomicFile::write(std::string_view bytes) { write(bytes.data(), bytes.size()); }

void AtomicFile::write(const void* data, std::size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const long written = write_some(descriptor_, next, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot be written", errno);
    next += written;
    size -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::finish() {
  if (descriptor_ < 0) return;
  // A program may have replaced the temporary by name: flush what carries the name now.
  const int named = open_existing(temporary_);
  if (named < 0) fail("cannot be written", errno);
  const bool flushed = flush(named) == 0;
  const int error = errno;
  const bool closed = close_file(named) == 0;
  if (!flushed) fail("cannot be written", error);
  if (!closed) fail("cannot be written", errno);
  if (close_file(std::exchange(descriptor_, -1)) != 0) fail("cannot be written", errno);
}

void AtomicFile::commit() {
  finish();
  std::error_code error;
  fs::rename(temporary_, path_, error);
  if (error) fail("cannot be replaced", error.value());
  forget(temporary_);
  temporary_.clear();
}

void remove_temporaries_on_signals() {
#ifndef _WIN32
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    if (::sigaction(signal, nullptr, &action) != 0 || action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = remove_standing;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(signal, &action, nullptr);
  }
#endif
}

void commit_all(std::vector<AtomicFile>& files) {
  for (AtomicFile& file : files) file.finish();
  for (AtomicFile& file : files) file.commit();
}

void check_writable(const std::string& argument, const fs::path& path) {
  const AtomicFile probe(argument, path);
}

}  // namespace vidsparse::tools
