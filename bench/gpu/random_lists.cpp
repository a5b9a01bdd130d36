#include "random_lists.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <random>
#include <vector>

namespace vidsparse {

TileMask common_lists(const Plan& plan, std::int64_t kept, double share) {
  const TileLayout& layout = plan.query_layout();
  const TileShape& tile = plan.problem().tile;
  const std::int64_t tiles = layout.tiles();
  const auto shared = static_cast<std::int64_t>(share * static_cast<double>(kept));
  std::mt19937_64 engine(std::random_device{}());
  const auto draw = [&] {
    return static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(tiles));
  };
  TileMask mask(plan.mask_shape());
  for (std::int64_t head = 0; head < mask.shape().heads; ++head) {
    std::map<std::array<std::int64_t, 4>, std::vector<std::int64_t>> lists;
    for (std::int64_t i = 0; i < tiles; ++i) {
      const Tile place = layout.tile(i);
      std::vector<std::int64_t>& list =
          lists[{place.segment, place.origin[0] / tile.t / 2, place.origin[1] / tile.h / 4,
                 place.origin[2] / tile.w / 4}];
      while (static_cast<std::int64_t>(list.size()) < shared) {
        const std::int64_t drawn = draw();
        if (std::find(list.begin(), list.end(), drawn) == list.end()) list.push_back(drawn);
      }
      for (const std::int64_t j : list) mask.set(0, head, i, j);
      for (std::int64_t more = kept - shared; more > 0;) {
        const std::int64_t j = draw();
        if (mask.view().test(0, head, i, j)) continue;
        mask.set(0, head, i, j);
        --more;
      }
    }
  }
  return mask;
}

TileMask uneven_lists(const Plan& plan, std::int64_t kept) {
  const std::int64_t tiles = plan.query_layout().tiles();
  std::mt19937_64 engine(std::random_device{}());
  std::normal_distribution<float> normal(0, 0.5F);
  std::extreme_value_distribution<float> gumbel;
  std::vector<float> popular(static_cast<std::size_t>(tiles));
  for (float& value : popular) value = normal(engine);
  std::vector<float> keys(popular.size());
  std::vector<std::size_t> order(popular.size());
  TileMask mask(plan.mask_shape());
  for (std::int64_t i = 0; i < tiles; ++i) {
    // The greatest of logarithms of weights and Gumbel noise are a draw without replacement.
    for (std::size_t j = 0; j < keys.size(); ++j) keys[j] = popular[j] + gumbel(engine);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::nth_element(order.begin(), order.begin() + kept, order.end(),
                     [&](std::size_t a, std::size_t b) { return keys[a] > keys[b]; });
    for (std::int64_t head = 0; head < mask.shape().heads; ++head) {
      for (auto j = order.begin(); j != order.begin() + kept; ++j) {
        mask.set(0, head, i, (static_cast<std::int64_t>(*j) + 97 * head) % tiles);
      }
    }
  }
  return mask;
}

}  // namespace vidsparse
