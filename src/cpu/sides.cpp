#include "cpu/sides.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vidsparse::cpu {

Side::Side(const TileLayout& layout, int multiple) : layout_(&layout), multiple_(multiple) {
  const std::int64_t tiles = layout.tiles();
  capacity_.reserve(static_cast<std::size_t>(tiles));
  slots_.reserve(static_cast<std::size_t>(tiles) + 1);
  slots_.push_back(0);
  for (std::int64_t index = 0; index < tiles; ++index) {
    const std::int64_t capacity = layout.tile(index).capacity();
    capacity_.push_back(static_cast<std::int32_t>(capacity));
    slots_.push_back(slots_.back() + round_up(capacity, multiple));
  }
}

Counts Side::counts(std::int64_t batch, const TensorView& lengths, std::int32_t* workspace) const {
  if (!lengths) return {capacity_.data(), 0};
  const auto* data = static_cast<const std::int32_t*>(lengths.data);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int32_t* row = lengths.rank == 2 ? data + lengths.offset(b) : data;
    for (std::int64_t index = 0; index < tiles(); ++index) {
      workspace[b * tiles() + index] =
          static_cast<std::int32_t>(layout_->valid(layout_->tile(index), index, row));
    }
  }
  return {workspace, tiles()};
}

void Side::gather(std::int64_t tile, std::int64_t count, std::int64_t* tokens) const {
  layout_->tile(tile).for_each_run(count,
                                   [&](std::int64_t first, std::int64_t run, std::int64_t slot) {
                                     for (std::int64_t i = 0; i < run; ++i)
                                       tokens[slot + i] = first + i;
                                   });
}

namespace {

/// Fragments are as wide as products want them: 16 columns, or 32 tokens where pairs of them are
/// words along the depth of an AMX tile.
int token_multiple(const core::Setting& setting, const Kernels& kernels) {
  return setting.problem.dtype == DType::bf16 && kernels.product_bf16 != nullptr ? 32 : 16;
}

}  // namespace

Context::Context(const core::Setting& plan, const Kernels& table)
    : setting(&plan),
      kernels(&table),
      query(plan.query, token_multiple(plan, table)),
      key(plan.key, token_multiple(plan, table)) {}

int Context::row_words() const {
  if (dtype() == DType::f32) return head_dim();
  const int words = head_dim() / 2;
  return dot_bf16() ? static_cast<int>(round_up(words, kernels->depth_multiple)) : words;
}

double Context::scale(const std::optional<double>& given) const {
  return given ? *given : 1.0 / std::sqrt(static_cast<double>(head_dim()));
}

void Context::prefetch(const Side& side, std::int64_t tile, std::int64_t count, std::int64_t batch,
                       std::int64_t head, std::initializer_list<TensorView> tensors) const {
  std::int64_t tokens[kFragment];
  const std::int64_t first = std::min<std::int64_t>(count, kFragment);
  side.gather(tile, first, tokens);
  const std::ptrdiff_t bytes = head_dim() * static_cast<std::ptrdiff_t>(element());
  for (const TensorView& tensor : tensors) {
    const HeadRows<const void*> rows(tensor, batch, head);
    for (std::int64_t i = 0; i < first; ++i) kernels->prefetch(rows[tokens[i]], bytes);
  }
}

void pack_rows_f32(const void* const* rows, int count, int columns, float* out, int depth) {
  for (int first = 0; first < columns; first += kPanel) {
    const int width = std::min(kPanel, columns - first);
    float* panel = out + static_cast<std::ptrdiff_t>(first) * depth;
    const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(float);
    for (int row = 0; row < depth; ++row, panel += width) {
      if (row < count && rows[row] != nullptr) {
        std::memcpy(panel, static_cast<const float*>(rows[row]) + first, bytes);
      } else {
        std::memset(panel, 0, bytes);
      }
    }
  }
}

}  // namespace vidsparse::cpu
