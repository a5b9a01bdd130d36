#include <cstring>
#include <limits>
#include <string>

#include "boundary.hpp"
#include "convert.hpp"
#include "vidsparse/tile_mask.hpp"

using vidsparse::MaskShape;
using vidsparse::TileMask;
using vidsparse::TileMaskRef;
using vidsparse::TileMaskView;
using vidsparse::c::guarded;
using vidsparse::c::ref_of;
using vidsparse::c::refuse;
using vidsparse::c::required;
using vidsparse::c::view_of;

namespace {

std::string to_string(const MaskShape& shape) {
  return "[" + std::to_string(shape.batch) + ", " + std::to_string(shape.heads) + ", " +
         std::to_string(shape.query_tiles) + ", " + std::to_string(shape.key_tiles) + "]";
}

/// A caller's mask whose sides can be walked: none negative, and the words addressable.
TileMaskRef checked(const vidsparse_mask* mask, const char* name) {
  const TileMaskRef result = ref_of(required(mask, name));
  if (!result) refuse(std::string(name) + ".words", "a pointer", "NULL");
  std::int64_t left = std::numeric_limits<std::int64_t>::max() / 8;
  for (const std::int64_t side :
       {result.shape.key_tiles, result.shape.query_tiles, result.shape.heads, result.shape.batch}) {
    if (side < 0 || side > left) {
      refuse(name, "sides that are not negative and fit memory", to_string(result.shape));
    }
    if (side > 0) left /= side;
  }
  return result;
}

void check_shape(const TileMaskRef& mask, const MaskShape& expected, const char* name) {
  if (mask.shape != expected) refuse(name, to_string(expected), to_string(mask.shape));
}

/// Rows of a head are contiguous in every mask, heads and batch entries need not be.
void copy(const TileMaskView& from, const TileMaskRef& to) {
  const auto head_bytes =
      static_cast<std::size_t>(from.shape.query_tiles * from.shape.row_words() * 8);
  if (head_bytes == 0) return;
  for (std::int64_t batch = 0; batch < from.shape.batch; ++batch) {
    for (std::int64_t head = 0; head < from.shape.heads; ++head) {
      std::memcpy(to.row(batch, head, 0), from.row(batch, head, 0), head_bytes);
    }
  }
}

TileMask owned(const TileMaskView& mask) {
  TileMask result(mask.shape);
  copy(mask, result.ref());
  return result;
}

/// ORs a builder's single head into every head of the caller's mask.
void add(const TileMask& always, const vidsparse_mask* mask) {
  const TileMaskRef to = checked(mask, "mask");
  const MaskShape& one = always.shape();
  check_shape(to, {to.shape.batch, to.shape.heads, one.query_tiles, one.key_tiles}, "mask");
  const TileMaskView from = always.view().broadcast(to.shape.batch, to.shape.heads);
  for (std::int64_t batch = 0; batch < to.shape.batch; ++batch) {
    for (std::int64_t head = 0; head < to.shape.heads; ++head) {
      for (std::int64_t tile = 0; tile < one.query_tiles; ++tile) {
        for (std::int64_t word = 0; word < one.row_words(); ++word) {
          to.row(batch, head, tile)[word] |= from.row(batch, head, tile)[word];
        }
      }
    }
  }
}

}  // namespace

int vidsparse_mask_from_bool(const vidsparse_tensor* map, const vidsparse_mask* mask) {
  return guarded([&] {
    const TileMaskRef to = checked(mask, "mask");
    const TileMask made = TileMask::from_bool(view_of(required(map, "map"), "map"));
    check_shape(to, made.shape(), "mask");
    copy(made.view(), to);
  });
}

int vidsparse_mask_from_indices(const vidsparse_tensor* indices, const vidsparse_tensor* counts,
                                const vidsparse_mask* mask) {
  return guarded([&] {
    const TileMaskRef to = checked(mask, "mask");
    const TileMask made =
        TileMask::from_indices(view_of(required(indices, "indices"), "indices"),
                               view_of(required(counts, "counts"), "counts"), to.shape.key_tiles);
    check_shape(to, made.shape(), "mask");
    copy(made.view(), to);
  });
}

int vidsparse_mask_to_bool(const vidsparse_mask* mask, const vidsparse_tensor* map) {
  return guarded(
      [&] { owned(checked(mask, "mask")).to_bool(ref_of(required(map, "map"), "map")); });
}

int vidsparse_mask_to_indices(const vidsparse_mask* mask, const vidsparse_tensor* indices,
                              const vidsparse_tensor* counts) {
  return guarded([&] {
    owned(checked(mask, "mask"))
        .to_indices(ref_of(required(indices, "indices"), "indices"),
                    ref_of(required(counts, "counts"), "counts"));
  });
}

int vidsparse_mask_transpose(const vidsparse_mask* mask, const vidsparse_mask* transposed) {
  return guarded([&] {
    const TileMaskRef from = checked(mask, "mask");
    const TileMaskRef to = checked(transposed, "transposed");
    check_shape(to,
                {from.shape.batch, from.shape.heads, from.shape.key_tiles, from.shape.query_tiles},
                "transposed");
    vidsparse::transpose(from, to);
  });
}

int vidsparse_mask_add_own_tile(const vidsparse_plan* plan, const vidsparse_mask* mask) {
  return guarded([&] {
    const vidsparse::Plan& made = required(plan, "plan").plan;
    add(vidsparse::always_own_tile(made.query_layout(), made.key_layout()), mask);
  });
}

int vidsparse_mask_add_first_frame(const vidsparse_plan* plan, const vidsparse_mask* mask) {
  return guarded([&] {
    const vidsparse::Plan& made = required(plan, "plan").plan;
    add(vidsparse::always_first_frame(made.query_layout(), made.key_layout()), mask);
  });
}

int vidsparse_mask_add_window(const vidsparse_plan* plan, int64_t dt, int64_t dh, int64_t dw,
                              const vidsparse_mask* mask) {
  return guarded([&] {
    const vidsparse::Plan& made = required(plan, "plan").plan;
    add(vidsparse::always_window(made.query_layout(), made.key_layout(), dt, dh, dw), mask);
  });
}
