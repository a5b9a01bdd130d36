#pragma once

#include <string>
#include <vector>

#include "core/backend.hpp"

namespace vidsparse::reference {

/// How one thing stands against the reference; docs/numerics.md has the bounds.
struct Report {
  bool ok = true;
  std::string what;  ///< "out: maximum error"
  double bound = 0;  ///< what is allowed
  double worst = 0;  ///< what was found; above `bound` when not ok
  /// The bound is a multiple of plain's error.
  bool bound_by_plain = false;
  /// The worst coordinate with both values, "[0, 12, 3, 64]: expected 1, got 2".
  std::string where;

  /// One line.
  std::string to_string() const;
};

/// The first that is not ok, else the last.
const Report& decisive(const std::vector<Report>& reports);

/// A result by the bounds that plain arithmetic sets: maximum error, RMS error, and NaN and
/// infinities in place. `exact` and `plain` (one or more answers, the worst of which is the
/// measure) have the shape of `actual`; its dtype decides the ulp.
Report judge_tensor(const std::string& name, const TensorView& actual, const TensorView& exact,
                    const std::vector<TensorView>& plain);

/// A result within `tolerance` of the largest magnitude in its vector (the last dimension): pooled
/// tensors and oc.
Report judge_close(const std::string& name, const TensorView& actual, const TensorView& exact,
                   double tolerance);

inline constexpr double kPooledTolerance = 1e-5;
inline constexpr double kCoarseTolerance = 1e-4;

/// What `select` was given, pooled tensors of any floating dtype.
struct ScoreInputs {
  TensorView qc;  ///< [B, H, Nq, D]
  TensorView kc;  ///< [B, G, Nk, D]
  Lengths lengths;
  std::optional<double> scale;
};

/// The rule of tau on every row; exact counts, Plain rows, exempt tiles, `always`, empty tiles and
/// tail bits.
Report judge_selection(const core::Setting& setting, const ScoreInputs& inputs,
                       const Selection& selection, const TileMaskView& mask);

/// coarse_max, and the logarithm of the coarse normaliser, by the row's tau.
Report judge_coarse_rows(const core::Setting& setting, const ScoreInputs& inputs,
                         const TensorView& coarse_max, const TensorView& coarse_sum);

}  // namespace vidsparse::reference
