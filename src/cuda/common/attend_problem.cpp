#include "cuda/common/attend_problem.hpp"

namespace vidsparse::cuda {

void require_aligned_rows(const AttendArgs& args) {
  require_aligned_rows("q", args.q);
  require_aligned_rows("out", args.out);
  if (args.gate.is_tensor()) require_aligned_rows("gate", args.gate.tensor());
  if (!args.gate.is_none()) require_aligned_rows("oc", args.oc);
}

std::int32_t key_fragments(const Context& context) {
  return context.key.tiles * context.key.fragments_per_tile;
}

std::int32_t table_batches(const Context& context, const AttendArgs& args) {
  return args.lengths.key ? static_cast<std::int32_t>(context.batch()) : 1;
}

}  // namespace vidsparse::cuda
