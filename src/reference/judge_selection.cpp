#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/judge.hpp"
#include "reference/op.hpp"
#include "reference/ranking.hpp"
#include "reference/rows.hpp"
#include "reference/side.hpp"

namespace vidsparse::reference {
namespace {

/// The fp64 scores of one row of the selection over the non-empty key tiles, and its tau.
class ScoreRow {
 public:
  ScoreRow(const core::Setting& setting, const ScoreInputs& inputs)
      : inputs_(inputs),
        key_(setting.key, inputs.lengths.key),
        scale_(scale_of(setting.problem, inputs.scale)),
        group_(setting.problem.heads_q / setting.problem.key_heads()),
        query_(static_cast<std::size_t>(setting.problem.head_dim)),
        pooled_key_(query_.size()) {}

  void compute(std::int64_t batch, std::int64_t head, std::int64_t query_tile) {
    tiles.clear();
    scores.clear();
    double largest = 0;
    load_row(inputs_.qc, batch, head, query_tile, query_.data());
    for (std::int64_t tile = 0; tile < key_.tiles(); ++tile) {
      if (key_.valid(batch, tile) == 0) continue;
      load_row(inputs_.kc, batch, head / group_, tile, pooled_key_.data());
      double sum = 0;
      double magnitude = 0;
      for (std::size_t d = 0; d < query_.size(); ++d) {
        sum += query_[d] * pooled_key_[d];
        magnitude += std::abs(query_[d] * pooled_key_[d]);
      }
      tiles.push_back(tile);
      scores.push_back(sum * scale_);
      if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
    }
    tau = 0x1p-14 * std::abs(scale_) * largest;
  }

  std::vector<std::int64_t> tiles;
  std::vector<double> scores;
  double tau = 0;

 private:
  const ScoreInputs& inputs_;
  Side key_;
  double scale_;
  std::int64_t group_;
  std::vector<double> query_;
  std::vector<double> pooled_key_;
};

/// NaN counts as less than any number, -inf included.
double below_all_if_nan(double score) {
  return std::isnan(score) ? -std::numeric_limits<double>::infinity() : score;
}

class RowJudge {
 public:
  RowJudge(const core::Setting& setting, const Selection& selection)
      : rule_(setting, selection), always_(selection.always) {}

  /// Empty when the row is right, else what is wrong with it; `excess` is then by how many taus.
  std::string judge(const ScoreRow& scores, const TileMaskView& mask, std::int64_t batch,
                    std::int64_t head, std::int64_t query_tile, double& excess) {
    const std::uint64_t* row = mask.row(batch, head, query_tile);
    std::int64_t known = 0;  // bits of the row that belong to non-empty tiles
    ranked_.clear();
    std::string complaint;
    for (std::size_t n = 0; n < scores.tiles.size(); ++n) {
      const std::int64_t tile = scores.tiles[n];
      const bool set = mask.test(batch, head, query_tile, tile);
      known += set ? 1 : 0;
      const bool kept = rule_.keeps_all(query_tile) || rule_.exempt(tile);
      const bool forced = always_ && always_.test(batch, head, query_tile, tile);
      if ((kept || forced) && !set) complaint = "tile " + std::to_string(tile) + " must be kept";
      if (!kept) ranked_.push_back({scores.scores[n], tile, set, forced});
    }
    if (count_set(row, mask.shape.row_words()) != known) {
      complaint = "a bit of an empty or non-existent tile is set";
    }
    if (complaint.empty()) complaint = judge_scores(scores.tau, excess);
    return complaint;
  }

 private:
  struct Candidate {
    double score;
    std::int64_t tile;
    bool set;
    bool forced;
  };

  std::string judge_scores(double tau, double& excess) {
    std::sort(ranked_.begin(), ranked_.end(), [](const Candidate& a, const Candidate& b) {
      return ranks_before(a.score, a.tile, b.score, b.tile);
    });
    const auto count = static_cast<std::size_t>(
        std::min<std::int64_t>(rule_.count(), static_cast<std::int64_t>(ranked_.size())));
    if (count == 0) {
      for (const Candidate& candidate : ranked_) {
        if (candidate.set && !candidate.forced) return "a tile is set though k is 0";
      }
      return {};
    }
    const double last = ranked_[count - 1].score;
    if (!std::isfinite(last)) return judge_exactly(count);

    // Forced tiles add to the count unless they are among the k anyway; near the k-th score either
    // may be.
    std::int64_t set = 0;
    std::int64_t on_top = 0;
    std::int64_t unclear = 0;
    for (const Candidate& candidate : ranked_) {
      const double score = below_all_if_nan(candidate.score);
      set += candidate.set ? 1 : 0;
      if (candidate.forced) {
        if (score < last - tau) {
          ++on_top;
        } else if (score <= last + tau) {
          ++unclear;
        }
        continue;
      }
      const double wrong = candidate.set ? last - score : score - last;
      if (wrong > excess * tau) excess = tau > 0 ? wrong / tau : 1e300;
      if (wrong > tau) {
        return "tile " + std::to_string(candidate.tile) + " is " +
               (candidate.set ? "set" : "not set");
      }
    }
    const auto least = static_cast<std::int64_t>(count) + on_top;
    if (set < least || set > least + unclear) {
      return "expected " + std::to_string(least) + " tiles, got " + std::to_string(set);
    }
    return {};
  }

  /// Ties of infinities and NaN are decided by the index alone, in any precision.
  std::string judge_exactly(std::size_t count) {
    for (std::size_t n = 0; n < ranked_.size(); ++n) {
      if (ranked_[n].set != (n < count || ranked_[n].forced)) {
        return "tile " + std::to_string(ranked_[n].tile) + " of a row with non-finite scores";
      }
    }
    return {};
  }

  SelectionRule rule_;
  TileMaskView always_;
  std::vector<Candidate> ranked_;
};

std::string row_name(std::int64_t batch, std::int64_t head, std::int64_t query_tile) {
  std::string name = std::to_string(batch);
  name += ", " + std::to_string(head);
  name += ", " + std::to_string(query_tile);
  return '[' + name + ']';
}

}  // namespace

Report judge_selection(const core::Setting& setting, const ScoreInputs& inputs,
                       const Selection& selection, const TileMaskView& mask) {
  Report report;
  report.what = "selection: distance from the k-th score in tau";
  report.bound = 1;
  ScoreRow scores(setting, inputs);
  RowJudge judge(setting, selection);
  for (std::int64_t batch = 0; batch < setting.problem.batch; ++batch) {
    for (std::int64_t head = 0; head < setting.problem.heads_q; ++head) {
      for (std::int64_t tile = 0; tile < setting.query.tiles(); ++tile) {
        scores.compute(batch, head, tile);
        double excess = report.worst;
        const std::string complaint = judge.judge(scores, mask, batch, head, tile, excess);
        if (excess > report.worst) report.where = row_name(batch, head, tile);
        report.worst = excess;
        if (complaint.empty()) continue;
        report.ok = false;
        report.where = row_name(batch, head, tile) + ": " + complaint;
        return report;
      }
    }
  }
  return report;
}

Report judge_coarse_rows(const core::Setting& setting, const ScoreInputs& inputs,
                         const TensorView& coarse_max, const TensorView& coarse_sum) {
  Report report;
  report.what = "coarse_max and coarse_sum: error in tau";
  report.bound = 1;
  ScoreRow scores(setting, inputs);
  for (std::int64_t batch = 0; batch < setting.problem.batch; ++batch) {
    for (std::int64_t head = 0; head < setting.problem.heads_q; ++head) {
      for (std::int64_t tile = 0; tile < setting.query.tiles(); ++tile) {
        scores.compute(batch, head, tile);
        double max = -std::numeric_limits<double>::infinity();
        for (const double score : scores.scores) max = std::isnan(score) ? score : max;
        for (const double score : scores.scores) max = score > max ? score : max;
        double sum = 0;
        for (const double score : scores.scores) sum += std::exp(score - max);
        const double got_max = load<double>(coarse_max, coarse_max.offset(batch, head) + tile);
        const double got_sum = load<double>(coarse_sum, coarse_sum.offset(batch, head) + tile);
        double error = 0;
        if (!std::isfinite(max)) {
          // Without weight both are fixed; a NaN or +inf row need only stay NaN in its sum.
          const bool none = max == -std::numeric_limits<double>::infinity();
          if (none ? got_max != max || got_sum != 0 : !std::isnan(got_sum)) error = 1e300;
        } else {
          const double allowed = scores.tau + 1e-30;
          error = std::abs(got_max - max) / allowed;
          error = std::max(error, std::abs(got_max + std::log(got_sum) - max - std::log(sum)) /
                                      (allowed + kPooledTolerance));
        }
        if (!(error > report.worst) && !std::isnan(error)) continue;
        report.worst = error;
        report.ok = report.ok && error <= report.bound;
        report.where = row_name(batch, head, tile);
      }
    }
  }
  return report;
}

}  // namespace vidsparse::reference
