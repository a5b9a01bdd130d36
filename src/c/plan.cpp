#include "vidsparse/plan.hpp"

#include <memory>
#include <string>
#include <variant>

#include "boundary.hpp"
#include "convert.hpp"
#include "sized_struct.hpp"

using vidsparse::TileLayout;
using vidsparse::c::guarded;
using vidsparse::c::refuse;
using vidsparse::c::required;
using vidsparse::core::check_below;

namespace {

const TileLayout& layout_of(const vidsparse_plan* plan, int side) {
  const vidsparse::Plan& made = required(plan, "plan").plan;
  if (side != VIDSPARSE_QUERY && side != VIDSPARSE_KEY) {
    refuse("side", "VIDSPARSE_QUERY or VIDSPARSE_KEY", std::to_string(side));
  }
  return side == VIDSPARSE_QUERY ? made.query_layout() : made.key_layout();
}

}  // namespace

int vidsparse_plan_create(const vidsparse_problem* problem, const vidsparse_plan_options* options,
                          vidsparse_plan** plan) {
  return guarded([&] {
    required(plan, "plan");
    auto made = std::make_unique<vidsparse_plan>(vidsparse_plan{
        vidsparse::Plan(vidsparse::c::problem_of(problem), vidsparse::c::options_of(options))});
    *plan = made.release();
  });
}

void vidsparse_plan_destroy(vidsparse_plan* plan) { delete plan; }

int vidsparse_plan_get_info(const vidsparse_plan* plan, vidsparse_plan_info* info) {
  return guarded([&] {
    const vidsparse::Plan& made = required(plan, "plan").plan;
    const TileLayout& query = made.query_layout();
    const TileLayout& key = made.key_layout();
    const vidsparse::MaskShape shape = made.mask_shape();
    vidsparse_plan_info value = vidsparse_plan_info_init();
    value.backend = made.backend().c_str();
    value.backend_detail = made.backend_detail().c_str();
    value.query_tokens = query.tokens();
    value.key_tokens = key.tokens();
    value.query_tiles = query.tiles();
    value.key_tiles = key.tiles();
    value.query_plain_tiles = query.plain_tiles();
    value.key_plain_tiles = key.plain_tiles();
    value.query_length_columns = query.length_columns();
    value.key_length_columns = key.length_columns();
    value.query_padding_waste = query.padding_waste();
    value.key_padding_waste = key.padding_waste();
    value.mask =
        vidsparse_dense_mask(nullptr, shape.batch, shape.heads, shape.query_tiles, shape.key_tiles);
    value.mask_row_words = shape.row_words();
    value.mask_words = shape.words();
    vidsparse::c::write_struct(value, info, "info");
  });
}

int vidsparse_plan_tile(const vidsparse_plan* plan, int side, int64_t index, vidsparse_tile* tile) {
  return guarded([&] {
    const TileLayout& layout = layout_of(plan, side);
    check_below("index", index, layout.tiles());
    const vidsparse::Tile box = layout.tile(index);
    vidsparse_tile value = vidsparse_tile_init();
    value.segment = box.segment;
    value.plain = box.plain ? 1 : 0;
    for (std::size_t i = 0; i < 3; ++i) {
      value.origin[i] = box.origin[i];
      value.extent[i] = box.extent[i];
    }
    value.first_token = box.first_token;
    value.stride_t = box.stride_t;
    value.stride_h = box.stride_h;
    value.capacity = box.capacity();
    vidsparse::c::write_struct(value, tile, "tile");
  });
}

int vidsparse_plan_tile_at(const vidsparse_plan* plan, int side, int64_t segment, int64_t t,
                           int64_t h, int64_t w, int64_t* index) {
  return guarded([&] {
    const TileLayout& layout = layout_of(plan, side);
    const auto& segments = layout.sequence().segments();
    check_below("segment", segment, static_cast<std::int64_t>(segments.size()));
    const auto* video = std::get_if<vidsparse::Video>(&segments[static_cast<std::size_t>(segment)]);
    if (video == nullptr) refuse("segment", "a video segment", "a plain one");
    check_below("t", t, video->t);
    check_below("h", h, video->h);
    check_below("w", w, video->w);
    required(index, "index") = layout.tile_at(segment, t, h, w);
  });
}

int vidsparse_plan_top_k(const vidsparse_plan* plan, const vidsparse_selection* selection,
                         int64_t* top_k) {
  return guarded([&] {
    const vidsparse::Plan& made = required(plan, "plan").plan;
    required(top_k, "top_k") = made.resolve_top_k(vidsparse::c::selection_of(selection));
  });
}

int vidsparse_top_k_of(double sparsity, int64_t tiles, int64_t* top_k) {
  return guarded([&] { required(top_k, "top_k") = vidsparse::top_k_of(sparsity, tiles); });
}
