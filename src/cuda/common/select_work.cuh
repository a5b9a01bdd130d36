#pragma once

#include <cstdint>

#include "cuda/common/select_coarse.cuh"
#include "cuda/common/select_row.cuh"
#include "cuda/common/select_scores.cuh"
#include "cuda/common/select_strip.cuh"

namespace vidsparse::cuda {

/// One thread block at work on strips of query tiles.
template <class Strip>
class SelectWork {
 public:
  using Config = typename Strip::Config;

  /// `words`: of shared memory, for two bitmap rows.
  __device__ SelectWork(const SelectParameters& parameters, typename Config::Shared& shared,
                        std::uint32_t* words, std::uint32_t* scores)
      : strip_{parameters,
               shared,
               words,
               words + parameters.row_words,
               scores,
               Config::score_pitch(parameters.key.tiles),
               parameters.key.tiles,
               static_cast<int>(threadIdx.x) / 32,
               static_cast<int>(threadIdx.x) % 32} {}

  __device__ void run(std::int64_t item) {
    const std::int64_t pair = item / strip_.p.strips;
    strip_.batch = static_cast<int>(pair / strip_.p.heads);
    strip_.head = static_cast<int>(pair % strip_.p.heads);
    strip_.first = static_cast<int>(item % strip_.p.strips) * Config::kRows;
    strip_.rows = min(Config::kRows, strip_.p.query.tiles - strip_.first);
    list_tiles();
    SelectScores<Strip>(strip_).run();
    finish_rows();
    if (strip_.p.oc) SelectCoarse<Strip>(strip_).run();
  }

 private:
  /// Which key tiles are there, and which the top k is chosen from. Other threads see it after the
  /// next barrier.
  __device__ void list_tiles() {
    for (int word = strip_.warp; word < strip_.p.row_words; word += Config::kWarps) {
      const int tile = word * 32 + strip_.lane;
      const bool there = tile < strip_.tiles && strip_.p.key.valid_tokens(strip_.batch, tile) > 0;
      const bool candidate = there && !(strip_.p.exempt && strip_.p.key.is_plain(tile));
      const std::uint32_t present = __ballot_sync(kAllLanes, there);
      const std::uint32_t candidates = __ballot_sync(kAllLanes, candidate);
      if (strip_.lane == 0) {
        strip_.present[word] = present;
        strip_.candidates[word] = candidates;
      }
    }
  }

  __device__ void finish_rows() {
    RowSetting setting = {(strip_.tiles + 31) / 32,
                          strip_.p.row_words,
                          strip_.present,
                          strip_.candidates,
                          0,
                          false,
                          strip_.p.top_k};
    for (int word = strip_.lane; word < strip_.p.row_words; word += 32) {
      setting.candidate_count += __popc(strip_.candidates[word]);
      setting.restricted = setting.restricted || strip_.candidates[word] != strip_.present[word];
    }
    setting.candidate_count = static_cast<int>(
        __reduce_add_sync(kAllLanes, static_cast<unsigned>(setting.candidate_count)));
    setting.restricted = __any_sync(kAllLanes, setting.restricted) != 0;
    for (int r = strip_.warp; r < strip_.rows; r += Config::kWarps) {
      const int tile = strip_.first + r;
      std::uint32_t* mask = strip_.p.mask + strip_.batch * strip_.p.mask_batch +
                            strip_.head * strip_.p.mask_head +
                            static_cast<std::int64_t>(tile) * strip_.p.row_words;
      if (strip_.p.query.is_plain(tile)) {
        write_all_bits(setting, mask, strip_.lane);
      } else {
        choose_row(setting, strip_.score_row(r), mask, tile);
      }
      if (!strip_.p.oc) continue;
      __syncwarp();
      const SoftmaxRow row =
          softmax(strip_.score_row(r), Config::score_columns(strip_.tiles), strip_.lane);
      if (strip_.lane == 0) {
        strip_.shared.sum[r] = row.sum;
        if (strip_.p.coarse_max)
          *strip_.p.coarse_max.row(strip_.batch, tile, strip_.head) = row.max;
        if (strip_.p.coarse_sum)
          *strip_.p.coarse_sum.row(strip_.batch, tile, strip_.head) = row.sum;
      }
    }
    __syncthreads();
  }

  /// In registers where the row fits.
  __device__ void choose_row(const RowSetting& setting, const std::uint32_t* keys,
                             std::uint32_t* mask, int tile) const {
    const std::uint32_t* always = nullptr;
    if (strip_.p.always != nullptr) {
      always = strip_.p.always + strip_.batch * strip_.p.always_batch +
               strip_.head * strip_.p.always_head +
               static_cast<std::int64_t>(tile) * strip_.p.row_words;
    }
    Cut cut;
    if (setting.steps <= Config::kFewSteps) {
      cut = find_cut(setting, RegisterRow<Config::kFewSteps>(setting, keys, strip_.lane));
    } else if (setting.steps <= Config::kManySteps) {
      cut = find_cut(setting, RegisterRow<Config::kManySteps>(setting, keys, strip_.lane));
    } else {
      cut = find_cut(setting, MemoryRow(setting, keys, strip_.lane));
    }
    write_bits(setting, keys, cut, always, mask, strip_.lane);
  }

  Strip strip_;
};

}  // namespace vidsparse::cuda
