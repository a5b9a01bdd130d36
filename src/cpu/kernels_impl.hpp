#pragma once

// Included by each ISA file after its `Vec`: the whole table of fp32 kernels.

#include "cpu/pack_impl.hpp"
#include "cpu/product_impl.hpp"
#include "cpu/softmax_impl.hpp"

namespace vidsparse::cpu {
namespace {

constexpr Kernels fp32_kernels(const char* name) {
  Kernels kernels{};
  kernels.name = name;
  kernels.product_f32 = product<FmaStep>;
  kernels.depth_multiple = 1;
  kernels.softmax_f32 = softmax_f32;
  kernels.gradient_f32 = gradient_f32;
  kernels.transpose_words = transpose_words;
  kernels.interleave_rows = interleave_rows;
  kernels.expand_pairs = expand_pairs;
  kernels.prefetch = prefetch;
  kernels.widen = widen;
  kernels.narrow = narrow;
  kernels.sum_rows = sum_rows;
  kernels.finish_row = finish_row;
  kernels.prepare_row = prepare_row;
  kernels.dot = dot;
  return kernels;
}

}  // namespace
}  // namespace vidsparse::cpu
