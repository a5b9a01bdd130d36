#include "cuda/common/attend_problem.hpp"

namespace vidsparse::cuda {

void require_aligned_rows(const AttendArgs& args) {
  require_aligned_rows("q", args.q);
  require_aligned_rows("out", args.out);
  if (args.gate.is_tensor()) require_aligned_rows("gate", args.gate.tensor());
  if (!args.gate.is_none()) require_aligned_rows("oc", args.oc);
}

}  // namespace vidsparse::cuda
