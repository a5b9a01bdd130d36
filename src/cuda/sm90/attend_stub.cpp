#include "cuda/sm90/attend.hpp"
#include "vidsparse/error.hpp"

namespace vidsparse::cuda::sm90 {

Verdict can_attend(const core::Setting&) { return Verdict::yes(); }
void prepare_attend(const Context&) {}
std::size_t attend_bytes(const Context&, const AttendArgs&) { return 0; }

void attend(const Context&, const AttendArgs&, Workspace, cudaStream_t) {
  throw Error(ErrorCode::unsupported, "attend", "expected the kernel to be built, got none");
}

}  // namespace vidsparse::cuda::sm90
