#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace vidsparse::tools {

/// An output file that appears whole or not at all: it is written under a temporary name in the
/// same folder, flushed to the disk and then renamed. Until commit() an existing file of that name
/// stays as it was; without commit() the temporary is removed.
///
///     AtomicFile file("--out", "result.json");
///     file.write(text);
///     file.commit();
///
/// Errors (no such folder, no permission, disk full) are vidsparse::Error naming `argument`.
class AtomicFile {
 public:
  AtomicFile(std::string argument, std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// For programs that write by name; it has the extension of path().
  const std::filesystem::path& temporary() const { return temporary_; }

  /// Appends.
  void write(std::string_view bytes);
  void write(const void* data, std::size_t size);

  /// Flushes to the disk and closes; commit() then only renames. For several outputs that shall
  /// appear together: finish all, then commit all.
  void finish();
  void commit();

 private:
  [[noreturn]] void fail(const std::string& action, int error);

  std::string argument_;
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once committed or moved from
  int descriptor_ = -1;
};

/// For main(): a signal that ends the program (Ctrl-C, SIGTERM, SIGHUP) then removes the
/// temporaries of all files first. One that is ignored stays ignored.
void remove_temporaries_on_signals();

/// finish() of all, then commit() of all.
void commit_all(std::vector<AtomicFile>& files);

/// Opens `path` for writing as `argument` and throws what AtomicFile would throw later; leaves
/// nothing behind. For checking an output before long work.
void check_writable(const std::string& argument, const std::filesystem::path& path);

}  // namespace vidsparse::tools
