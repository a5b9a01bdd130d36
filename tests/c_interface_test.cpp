// The C interface against the C++ one: the same bits from every call.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "c_interface_c99.h"
#include "c_interface_fixture.hpp"

namespace vidsparse {
namespace {

TEST_F(CInterface, InfoAndTiles) {
  vidsparse_plan_info info = vidsparse_plan_info_init();
  ASSERT_EQ(vidsparse_plan_get_info(c_, &info), VIDSPARSE_OK);
  EXPECT_EQ(info.backend, std::string("reference"));
  EXPECT_EQ(info.backend_detail, plan_->backend_detail());
  EXPECT_EQ(info.query_tokens, kText + kT * kH * kW);
  EXPECT_EQ(info.key_tokens, tokens_);
  EXPECT_EQ(info.query_tiles, tiles_);
  EXPECT_EQ(info.key_plain_tiles, 2);
  EXPECT_EQ(info.query_length_columns, 1);
  EXPECT_EQ(info.query_padding_waste, plan_->query_layout().padding_waste());
  EXPECT_EQ(info.mask_words, plan_->mask_shape().words());
  EXPECT_EQ(info.mask_row_words, vidsparse_mask_row_words(tiles_));
  EXPECT_EQ(info.mask.batch_stride, kHeads * tiles_ * info.mask_row_words);
  for (std::int64_t index = 0; index < tiles_; ++index) {
    vidsparse_tile box = vidsparse_tile_init();
    ASSERT_EQ(vidsparse_plan_tile(c_, VIDSPARSE_KEY, index, &box), VIDSPARSE_OK);
    const Tile tile = plan_->key_layout().tile(index);
    EXPECT_EQ(box.segment, tile.segment);
    EXPECT_EQ(box.plain != 0, tile.plain);
    EXPECT_EQ(box.first_token, tile.first_token);
    EXPECT_EQ(box.stride_t, tile.stride_t);
    EXPECT_EQ(box.stride_h, tile.stride_h);
    EXPECT_EQ(box.capacity, tile.capacity());
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(box.origin[i], tile.origin[i]);
      EXPECT_EQ(box.extent[i], tile.extent[i]);
    }
    if (tile.plain) continue;
    std::int64_t found = -1;
    ASSERT_EQ(vidsparse_plan_tile_at(c_, VIDSPARSE_KEY, 1, tile.origin[0], tile.origin[1],
                                     tile.origin[2], &found),
              VIDSPARSE_OK);
    EXPECT_EQ(found, index);
  }
  vidsparse_tile box = vidsparse_tile_init();
  std::int64_t index = 0;
  expect_refused(vidsparse_plan_tile(c_, VIDSPARSE_QUERY, tiles_, &box), "index");
  expect_refused(vidsparse_plan_tile(c_, 2, 0, &box), "side");
  expect_refused(vidsparse_plan_tile_at(c_, VIDSPARSE_QUERY, 0, 0, 0, 0, &index), "segment");
  expect_refused(vidsparse_plan_tile_at(c_, VIDSPARSE_QUERY, 1, 0, kH, 0, &index), "h");
}

TEST_F(CInterface, TopK) {
  std::int64_t top_k = 0;
  const vidsparse_selection selection = vidsparse_by_sparsity(0.7);
  ASSERT_EQ(vidsparse_plan_top_k(c_, &selection, &top_k), VIDSPARSE_OK);
  EXPECT_EQ(top_k, top_k_of(0.7, plan_->key_layout().video_tiles()));
  ASSERT_EQ(vidsparse_top_k_of(0.8, 624, &top_k), VIDSPARSE_OK);
  EXPECT_EQ(top_k, 125);
  expect_refused(vidsparse_top_k_of(1.0, 624, &top_k), "sparsity");
  vidsparse_selection both = vidsparse_by_top_k(3);
  both.sparsity = 0.5;
  expect_refused(vidsparse_plan_top_k(c_, &both, &top_k), "sparsity");
  both.rule = 0;
  expect_refused(vidsparse_plan_top_k(c_, &both, &top_k), "selection.rule");
  EXPECT_EQ(top_k, 125);
}

TEST_F(CInterface, StagesAreThoseOfTheCppInterface) {
  auto q = random_values(token_elements()), k = random_values(token_elements());
  auto v = random_values(token_elements()), gate = random_values(token_elements());
  std::vector<std::int32_t> text(kBatch);
  for (auto& length : text) length = static_cast<std::int32_t>(random_() % (kText + 1));

  vidsparse_pool_args c_pool = vidsparse_pool_args_init();
  c_pool.q = c_tokens(q), c_pool.k = c_tokens(k), c_pool.v = c_tokens(v);
  c_pool.lengths.query = vidsparse_dense(text.data(), VIDSPARSE_I32, 2, kBatch, 1, 0, 0);
  c_pool.lengths.key = c_pool.lengths.query;
  auto c_qc = poison(pooled_elements()), c_kc = c_qc, c_vc = c_qc, qc = c_qc, kc = c_qc, vc = c_qc;
  c_pool.qc = c_pooled(c_qc), c_pool.kc = c_pooled(c_kc), c_pool.vc = c_pooled(c_vc);
  PoolArgs pool;
  pool.q = tokens(q), pool.k = tokens(k), pool.v = tokens(v);
  pool.lengths.query = TensorView::dense(text.data(), DType::i32, 2, {kBatch, 1, 0, 0});
  pool.lengths.key = pool.lengths.query;
  pool.qc = pooled(qc), pool.kc = pooled(kc), pool.vc = pooled(vc);
  run_both(c_pool, pool, vidsparse_pool_workspace, vidsparse_pool, &Plan::pool);
  expect_same(c_qc, qc, "qc");
  expect_same(c_kc, kc, "kc");
  expect_same(c_vc, vc, "vc");

  vidsparse_selection chosen = vidsparse_by_sparsity(0.6);
  chosen.prefix_mode = VIDSPARSE_COMPETE;
  TileMask own = always_own_tile(plan_->query_layout(), plan_->key_layout());
  chosen.always = vidsparse_dense_mask(own.ref().words, 1, 1, tiles_, tiles_);
  chosen.always.batch = kBatch, chosen.always.heads = kHeads;
  chosen.always.batch_stride = chosen.always.head_stride = 0;
  vidsparse_select_args c_select = vidsparse_select_args_init();
  c_select.qc = c_pooled(c_qc), c_select.kc = c_pooled(c_kc), c_select.vc = c_pooled(c_vc);
  c_select.lengths = c_pool.lengths;
  c_select.selection = &chosen;
  c_select.scale.given = 1, c_select.scale.value = 0.25;
  TileMask c_mask(plan_->mask_shape()), mask(plan_->mask_shape());
  c_select.mask = vidsparse_dense_mask(c_mask.ref().words, kBatch, kHeads, tiles_, tiles_);
  const std::int64_t row_count = kBatch * kHeads * tiles_;
  auto c_oc = poison(pooled_elements()), oc = c_oc;
  auto c_max = poison(row_count), c_sum = c_max, max = c_max, sum = c_max;
  c_select.oc = c_pooled(c_oc);
  c_select.coarse_max = c_rows(c_max, tiles_), c_select.coarse_sum = c_rows(c_sum, tiles_);
  SelectArgs select;
  select.qc = pooled(qc), select.kc = pooled(kc), select.vc = pooled(vc);
  select.lengths = pool.lengths;
  select.selection.sparsity = 0.6;
  select.selection.prefix_mode = PrefixMode::compete;
  select.selection.always = own.view().broadcast(kBatch, kHeads);
  select.scale = 0.25;
  select.mask = mask.ref();
  select.oc = pooled(oc), select.coarse_max = rows(max, tiles_);
  select.coarse_sum = rows(sum, tiles_);
  run_both(c_select, select, vidsparse_select_workspace, vidsparse_select, &Plan::select);
  expect_same(c_oc, oc, "oc");
  expect_same(c_max, max, "coarse_max");
  expect_same(c_sum, sum, "coarse_sum");
  EXPECT_EQ(std::memcmp(c_mask.view().words, mask.view().words,
                        static_cast<std::size_t>(mask.shape().words()) * 8),
            0);

  vidsparse_attend_args c_attend = vidsparse_attend_args_init();
  c_attend.q = c_pool.q, c_attend.k = c_pool.k, c_attend.v = c_pool.v;
  c_attend.lengths = c_pool.lengths;
  c_attend.scale = c_select.scale;
  c_attend.mask = c_select.mask;
  c_attend.gate.kind = VIDSPARSE_GATE_TENSOR, c_attend.gate.tensor = c_tokens(gate);
  c_attend.oc = c_select.oc;
  auto c_out = poison(token_elements()), out = c_out;
  auto c_lse = poison(kBatch * kHeads * tokens_), lse = c_lse;
  c_attend.out = c_tokens(c_out), c_attend.lse = c_rows(c_lse, tokens_);
  AttendArgs attend;
  attend.q = pool.q, attend.k = pool.k, attend.v = pool.v;
  attend.lengths = pool.lengths;
  attend.scale = 0.25;
  attend.mask = mask.view();
  attend.gate = Gate(TensorView(tokens(gate)));
  attend.oc = pooled(oc), attend.out = tokens(out), attend.lse = rows(lse, tokens_);
  run_both(c_attend, attend, vidsparse_attend_workspace, vidsparse_attend, &Plan::attend);
  expect_same(c_out, out, "out");
  expect_same(c_lse, lse, "lse");
}

TEST_F(CInterface, ForwardAndBackwardAreThoseOfTheCppInterface) {
  auto q = random_values(token_elements()), k = random_values(token_elements());
  auto v = random_values(token_elements()), gate = random_values(token_elements());
  auto dout = random_values(token_elements());
  auto dlse = random_values(kBatch * kHeads * tokens_);
  auto c_out = poison(token_elements()), out = c_out, c_oc = poison(pooled_elements()), oc = c_oc;
  auto c_lse = poison(kBatch * kHeads * tokens_), lse = c_lse;
  auto c_max = poison(kBatch * kHeads * tiles_), c_sum = c_max, max = c_max, sum = c_max;
  TileMask c_mask(plan_->mask_shape()), mask(plan_->mask_shape());
  const vidsparse_selection chosen = vidsparse_by_top_k(2);

  vidsparse_forward_args c_forward = vidsparse_forward_args_init();
  c_forward.q = c_tokens(q), c_forward.k = c_tokens(k), c_forward.v = c_tokens(v);
  c_forward.selection = &chosen;
  c_forward.gate.kind = VIDSPARSE_GATE_TENSOR, c_forward.gate.tensor = c_tokens(gate);
  c_forward.out = c_tokens(c_out), c_forward.lse = c_rows(c_lse, tokens_);
  c_forward.mask = vidsparse_dense_mask(c_mask.ref().words, kBatch, kHeads, tiles_, tiles_);
  c_forward.oc = c_pooled(c_oc);
  c_forward.coarse_max = c_rows(c_max, tiles_), c_forward.coarse_sum = c_rows(c_sum, tiles_);
  ForwardArgs forward;
  forward.q = tokens(q), forward.k = tokens(k), forward.v = tokens(v);
  forward.selection.top_k = 2;
  forward.gate = Gate(TensorView(tokens(gate)));
  forward.out = tokens(out), forward.lse = rows(lse, tokens_), forward.mask = mask.ref();
  forward.oc = pooled(oc), forward.coarse_max = rows(max, tiles_);
  forward.coarse_sum = rows(sum, tiles_);
  run_both(c_forward, forward, vidsparse_forward_workspace, vidsparse_forward, &Plan::forward);
  expect_same(c_out, out, "out");
  expect_same(c_lse, lse, "lse");
  expect_same(c_oc, oc, "oc");

  auto c_dq = poison(token_elements()), c_dk = c_dq, c_dv = c_dq, c_dgate = c_dq;
  auto dq = c_dq, dk = c_dq, dv = c_dq, dgate = c_dq;
  vidsparse_backward_args c_back = vidsparse_backward_args_init();
  c_back.q = c_forward.q, c_back.k = c_forward.k, c_back.v = c_forward.v;
  c_back.mask = c_forward.mask;
  c_back.gate = c_forward.gate;
  c_back.out = c_forward.out, c_back.lse = c_forward.lse, c_back.oc = c_forward.oc;
  c_back.coarse_max = c_forward.coarse_max, c_back.coarse_sum = c_forward.coarse_sum;
  c_back.dout = c_tokens(dout), c_back.dlse = c_rows(dlse, tokens_);
  c_back.dq = c_tokens(c_dq), c_back.dk = c_tokens(c_dk), c_back.dv = c_tokens(c_dv);
  c_back.dgate = c_tokens(c_dgate);
  BackwardArgs back;
  back.q = forward.q, back.k = forward.k, back.v = forward.v;
  back.mask = mask.view();
  back.gate = forward.gate;
  back.out = tokens(out), back.lse = rows(lse, tokens_), back.oc = pooled(oc);
  back.coarse_max = rows(max, tiles_), back.coarse_sum = rows(sum, tiles_);
  back.dout = tokens(dout), back.dlse = rows(dlse, tokens_);
  back.dq = tokens(dq), back.dk = tokens(dk), back.dv = tokens(dv), back.dgate = tokens(dgate);
  run_both(c_back, back, vidsparse_backward_workspace, vidsparse_backward, &Plan::backward);
  expect_same(c_dq, dq, "dq");
  expect_same(c_dk, dk, "dk");
  expect_same(c_dv, dv, "dv");
  expect_same(c_dgate, dgate, "dgate");
}

TEST_F(CInterface, ACProgramGetsTheSameResults) {
  const std::int64_t elements = tokens_ * kHeads * kDim;
  auto q = random_values(elements), k = random_values(elements), v = random_values(elements);
  auto dout = random_values(elements), out = poison(elements), dq = out, dk = out, dv = out;
  c99_case run{};
  run.backend = "reference";
  run.text = kText, run.t = kT, run.h = kH, run.w = kW, run.heads = kHeads, run.head_dim = kDim;
  run.top_k = 3;
  run.q = q.data(), run.k = k.data(), run.v = v.data(), run.dout = dout.data();
  run.out = out.data(), run.dq = dq.data(), run.dk = dk.data(), run.dv = dv.data();
  const char* failure = c99_whole_op(&run);
  ASSERT_EQ(failure, nullptr) << failure;

  Problem problem = plan_->problem();
  problem.batch = 1;
  PlanOptions options;
  options.backend = "reference";
  const Plan plan(problem, options);
  auto expected = poison(elements);
  auto dense = [&](std::vector<float>& values) {
    return TensorRef::dense(values.data(), DType::f32, 4, {1, tokens_, kHeads, kDim});
  };
  ForwardArgs forward;
  forward.q = dense(q), forward.k = dense(k), forward.v = dense(v), forward.out = dense(expected);
  forward.selection.top_k = 3;
  forward.gate = Gate(1.0F);
  const std::size_t bytes = plan.workspace_bytes(forward);
  std::vector<unsigned char> block(bytes + 64, 0xFF);
  auto* aligned = block.data() + (64 - reinterpret_cast<std::uintptr_t>(block.data()) % 64) % 64;
  plan.forward(forward, {aligned, bytes});
  expect_same(out, expected, "out");
  for (const auto* gradient : {&dq, &dk, &dv}) {
    for (const float value : *gradient) ASSERT_TRUE(std::isfinite(value));
  }
  run.top_k = 1 << 20;
  failure = c99_whole_op(&run);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(std::string(failure).rfind("top_k: ", 0), 0U) << failure;
}

TEST_F(CInterface, Masks) {
  const std::int64_t batch = 2, heads = 2, query = 5, key = 131;
  std::vector<std::uint8_t> map(static_cast<std::size_t>(batch * heads * query * key));
  for (auto& bit : map) bit = static_cast<std::uint8_t>(random_() % 4 == 0);
  const vidsparse_tensor c_map =
      vidsparse_dense(map.data(), VIDSPARSE_U8, 4, batch, heads, query, key);
  const TileMask expected =
      TileMask::from_bool(TensorView::dense(map.data(), DType::u8, 4, {batch, heads, query, key}));
  const auto words = static_cast<std::size_t>(expected.shape().words());
  std::vector<std::uint64_t> bits(words, ~0ULL), again(words, ~0ULL);
  const vidsparse_mask mask = vidsparse_dense_mask(bits.data(), batch, heads, query, key);
  const vidsparse_mask copy = vidsparse_dense_mask(again.data(), batch, heads, query, key);
  ASSERT_EQ(vidsparse_mask_from_bool(&c_map, &mask), VIDSPARSE_OK) << vidsparse_last_error();
  EXPECT_EQ(std::memcmp(bits.data(), expected.view().words, words * 8), 0);

  std::vector<std::uint8_t> back(map.size(), 7);
  const vidsparse_tensor c_back =
      vidsparse_dense(back.data(), VIDSPARSE_U8, 4, batch, heads, query, key);
  ASSERT_EQ(vidsparse_mask_to_bool(&mask, &c_back), VIDSPARSE_OK);
  EXPECT_EQ(back, map);

  std::vector<std::int32_t> list(map.size(), -7), counts(map.size() / key, -7);
  const vidsparse_tensor c_list =
      vidsparse_dense(list.data(), VIDSPARSE_I32, 4, batch, heads, query, key);
  const vidsparse_tensor c_counts =
      vidsparse_dense(counts.data(), VIDSPARSE_I32, 3, batch, heads, query, 0);
  ASSERT_EQ(vidsparse_mask_to_indices(&mask, &c_list, &c_counts), VIDSPARSE_OK);
  ASSERT_EQ(vidsparse_mask_from_indices(&c_list, &c_counts, &copy), VIDSPARSE_OK);
  EXPECT_EQ(again, bits);

  const TileMask key_major = expected.transposed();
  std::vector<std::uint64_t> turned(static_cast<std::size_t>(key_major.shape().words()), ~0ULL);
  const vidsparse_mask c_turned = vidsparse_dense_mask(turned.data(), batch, heads, key, query);
  ASSERT_EQ(vidsparse_mask_transpose(&mask, &c_turned), VIDSPARSE_OK);
  EXPECT_EQ(std::memcmp(turned.data(), key_major.view().words, turned.size() * 8), 0);
  expect_refused(vidsparse_mask_transpose(&mask, &copy), "transposed");
  vidsparse_mask huge = mask;
  huge.batch = std::numeric_limits<std::int64_t>::max();
  expect_refused(vidsparse_mask_to_bool(&huge, &c_back), "mask");
}

TEST_F(CInterface, AlwaysSelectedTiles) {
  const TileLayout& layout = plan_->query_layout();
  TileMask joined({kBatch, kHeads, tiles_, tiles_});
  const vidsparse_mask mask =
      vidsparse_dense_mask(joined.ref().words, kBatch, kHeads, tiles_, tiles_);
  ASSERT_EQ(vidsparse_mask_add_own_tile(c_, &mask), VIDSPARSE_OK) << vidsparse_last_error();
  ASSERT_EQ(vidsparse_mask_add_first_frame(c_, &mask), VIDSPARSE_OK);
  ASSERT_EQ(vidsparse_mask_add_window(c_, 1, 0, 1, &mask), VIDSPARSE_OK);
  const TileMask own = always_own_tile(layout, layout), first = always_first_frame(layout, layout);
  const TileMask window = always_window(layout, layout, 1, 0, 1);
  for (std::int64_t i = 0; i < tiles_; ++i) {
    for (std::int64_t j = 0; j < tiles_; ++j) {
      const bool any = own.view().test(0, 0, i, j) || first.view().test(0, 0, i, j) ||
                       window.view().test(0, 0, i, j);
      EXPECT_EQ(joined.view().test(kBatch - 1, kHeads - 1, i, j), any) << i << ", " << j;
    }
  }
}

}  // namespace
}  // namespace vidsparse
