#include <csignal>

#include "atomic_file.hpp"
#include "command_line.hpp"

int main(int argc, char** argv) {
#ifdef SIGXFSZ
  // A file size limit then fails the write, which is reported and cleaned up after, instead of
  // killing the process and leaving its temporary file behind.
  std::signal(SIGXFSZ, SIG_IGN);
#endif
  vidsparse::tools::remove_temporaries_on_signals();
  return vidsparse::tools::run_command_line(argc, argv);
}
