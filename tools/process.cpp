#include "process.hpp"

#include <boost/process.hpp>
#include <csignal>
#include <iterator>
#include <thread>

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

namespace bp = boost::process;

constexpr std::size_t kChunk = 1 << 16;
constexpr std::size_t kErrorTextLimit = 8192;

/// Writing to a child that has died must be an error of the write, not a signal to this process.
class IgnoreBrokenPipe {
 public:
#ifdef SIGPIPE
  IgnoreBrokenPipe() : previous_(std::signal(SIGPIPE, SIG_IGN)) {}
  ~IgnoreBrokenPipe() { std::signal(SIGPIPE, previous_); }

 private:
  void (*previous_)(int);
#endif
};

boost::filesystem::path find_program(const std::string& program) {
  const auto path = bp::search_path(program);
  if (path.empty()) refuse(program, "a program on PATH (Debian: apt install ffmpeg)", "none");
  return path;
}

/// Reads the child's stderr on a thread of its own: a child blocked on a full stderr would never
/// finish its stdout.
class ErrorReader {
 public:
  explicit ErrorReader(bp::ipstream& stream)
      : thread_([this, &stream] {
          std::string text(std::istreambuf_iterator<char>(stream), {});
          if (text.size() > kErrorTextLimit) text.erase(0, text.size() - kErrorTextLimit);
          text_ = std::move(text);
        }) {}
  ~ErrorReader() {
    if (thread_.joinable()) thread_.join();
  }
  std::string take() {
    thread_.join();
    return std::move(text_);
  }

 private:
  std::string text_;
  std::thread thread_;
};

}  // namespace

bool program_exists(const std::string& program) { return !bp::search_path(program).empty(); }

ProcessResult run_reading(const std::string& program, const std::vector<std::string>& arguments,
                          const OutputSink& sink) {
  const auto path = find_program(program);
  bp::ipstream output;
  bp::ipstream errors;
  bp::child child(path, bp::args(arguments), bp::std_in<bp::null, bp::std_out> output,
                  bp::std_err > errors);
  ErrorReader reader(errors);
  std::vector<char> buffer(kChunk);
  while (output) {
    output.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    const auto got = static_cast<std::size_t>(output.gcount());
    if (got > 0 && !sink(buffer.data(), got)) break;
  }
  output.pipe().close();
  child.wait();
  return {child.exit_code(), reader.take()};
}

ProcessResult run_writing(const std::string& program, const std::vector<std::string>& arguments,
                          const InputSource& source) {
  const auto path = find_program(program);
  [[maybe_unused]] const IgnoreBrokenPipe guard;
  bp::opstream input;
  bp::ipstream errors;
  bp::child child(path, bp::args(arguments), bp::std_in<input, bp::std_out> bp::null,
                  bp::std_err > errors);
  ErrorReader reader(errors);
  std::vector<char> buffer(kChunk);
  try {
    for (std::size_t size; (size = source(buffer.data(), buffer.size())) > 0;) {
      input.write(buffer.data(), static_cast<std::streamsize>(size));
      if (!input) break;
    }
    input.flush();
  } catch (const bp::process_error&) {
    // The child closed its end; why, its exit code and stderr say.
  } catch (const std::ios_base::failure&) {
  }
  input.pipe().close();
  child.wait();
  return {child.exit_code(), reader.take()};
}

}  // namespace vidsparse::tools
