#pragma once

#include <functional>
#include <string>
#include <vector>

#include "buffers.hpp"
#include "vidsparse/vidsparse.hpp"

namespace vidsparse::tools {

/// How long to measure each stage.
struct TimingRule {
  double seconds = 1;  ///< repeat until this much has been spent, but
  int least_runs = 3;  ///< at least this often, unless the warm-up alone took longer than `seconds`
};

struct Timing {
  double median = 0;  ///< seconds
  double fastest = 0;
  int runs = 0;  ///< the warm-up not counted
};

/// One run to warm up, then runs as the rule says.
Timing time_runs(const TimingRule& rule, const std::function<void()>& run);

/// One row of the table.
struct Stage {
  std::string name;
  Timing timing;
  double flops = 0;  ///< work done, 0 where bytes are the measure
  double bytes = 0;  ///< read and written, 0 where flops are the measure
};

/// Random tensors for a plan, and its stages run on them.
class StageTimer {
 public:
  struct Options {
    Selection selection;
    bool gate = false;  ///< an elementwise gate, as models have
    bool backward = true;
    TimingRule rule;
    std::uint64_t seed = 0;
  };

  StageTimer(const Plan& plan, const ParallelFor& parallel, const Options& options);

  Stage pool();
  Stage select();
  Stage attend();
  Stage forward();
  Stage backward();
  /// The same op with every tile selected, as `forward` and `backward`.
  std::vector<Stage> dense();

 private:
  double attend_flops(const TileMask& mask) const;
  Stage measure(const std::string& name, const std::function<void()>& run) const;
  Stage time_forward(const std::string& name, const Selection& selection);
  Stage time_backward(const std::string& name);
  OwnedTensor random(const TensorView& shape);

  const Plan& plan_;
  ParallelFor parallel_;
  Options options_;
  std::uint64_t tensors_made_ = 0;
  OwnedTensor q_, k_, v_, gate_tensor_, dout_;
  OwnedTensor qc_, kc_, vc_, oc_, coarse_max_, coarse_sum_;
  OwnedTensor out_, lse_;
  OwnedTensor dq_, dk_, dv_, dgate_;
  TileMask mask_;
};

}  // namespace vidsparse::tools
