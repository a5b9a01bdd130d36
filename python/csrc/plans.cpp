#include "plans.hpp"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "errors.hpp"

namespace vidsparse::torch_ops {

Sequence decode_sequence(const std::vector<std::int64_t>& code) {
  if (code.size() % 4 != 0) {
    refuse("sequence", "four integers a segment", std::to_string(code.size()) + " integers");
  }
  std::vector<Segment> segments;
  for (std::size_t i = 0; i < code.size(); i += 4) {
    if (code[i] == 0) {
      segments.push_back(Plain{code[i + 1]});
    } else if (code[i] == 1) {
      segments.push_back(Video{code[i + 1], code[i + 2], code[i + 3]});
    } else {
      return Packed{code[i + 1], code[i + 2]};
    }
  }
  return Sequence(std::move(segments));
}

Problem decode_problem(const std::vector<std::int64_t>& query, const std::vector<std::int64_t>& key,
                       const std::vector<std::int64_t>& sizes) {
  if (sizes.size() != 8) refuse("sizes", "8 integers", std::to_string(sizes.size()));
  Problem problem;
  problem.query = decode_sequence(query);
  problem.key = decode_sequence(key);
  problem.tile = {sizes[0], sizes[1], sizes[2]};
  problem.batch = sizes[3];
  problem.heads_q = sizes[4];
  problem.heads_kv = sizes[5];
  problem.head_dim = sizes[6];
  problem.dtype = static_cast<DType>(sizes[7]);
  return problem;
}

Device decode_device(std::int64_t kind, std::int64_t index) {
  return {kind == 0 ? Device::Kind::cpu : Device::Kind::cuda, static_cast<int>(index)};
}

Registry<Plan>& plans() {
  // Never destroyed: Python may drop its last plan after static destructors have run.
  static auto* const instance = new Registry<Plan>("plan");
  return *instance;
}

ParallelFor torch_threads() {
  const auto threads = static_cast<std::int64_t>(torch::stable::get_num_threads());
  return ParallelFor(
      static_cast<int>(threads), [threads](std::int64_t count, const ParallelFor::Task& task) {
        std::atomic<std::int64_t> next{0};
        torch::stable::parallel_for(0, std::min(threads, count), 1,
                                    [&](std::int64_t begin, std::int64_t end) {
                                      for (; begin < end; ++begin) {
                                        for (std::int64_t i = next++; i < count; i = next++) {
                                          task(i);
                                        }
                                      }
                                    });
      });
}

}  // namespace vidsparse::torch_ops
