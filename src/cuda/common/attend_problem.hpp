#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "cuda/common/attend_problem.cuh"
#include "cuda/common/context.hpp"

namespace vidsparse::cuda {

/// Of every tensor of a call but K and V, which each architecture reads its own way.
void require_aligned_rows(const AttendArgs& args);

/// A call's arguments as the kernels take them. `table`: where its key fragments will lie.
template <class T>
AttendProblem<T> make_attend_problem(const Context& context, const AttendArgs& args,
                                     const KeyFragment* table) {
  AttendProblem<T> p;
  p.query = with_lengths(context.query, args.lengths.query);
  p.q = by_token<const T>(args.q);
  p.out = by_token<T>(args.out);
  if (args.gate.is_tensor()) p.gate = by_token<const T>(args.gate.tensor());
  if (args.gate.is_scalar()) p.gate_value = args.gate.value();
  if (!args.gate.is_none()) p.oc = by_head<const float>(args.oc);
  if (args.lse) {
    p.lse = {static_cast<float*>(args.lse.data), args.lse.strides[0], args.lse.strides[1],
             args.lse.shape[2] > 1 ? args.lse.strides[2] : 1};
  }
  const double scale = context.scale(args.scale);
  // The kernel's is above 0, so that masked scores of -inf stay so.
  p.scale_log2 = scale == 0 ? 1.0F : static_cast<float>(std::abs(scale) * std::numbers::log2e);
  if (scale == 0) p.query_and = 0;
  if (scale < 0) p.query_xor = 0x80008000U;
  set_mask(p, args.mask);
  p.table = table;
  p.key_fragments = context.key.fragments();
  p.table_batch = context.table_batches(args.lengths) > 1 ? p.key_fragments : 0;
  p.fragments_per_tile = Divider(static_cast<std::uint32_t>(context.key.fragments_per_tile));
  p.heads = static_cast<std::int32_t>(context.heads());
  p.group = static_cast<std::int32_t>(context.group());
  return p;
}

}  // namespace vidsparse::cuda
