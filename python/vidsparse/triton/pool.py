"""Means of the valid tokens of each tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import valid_tokens


@triton.jit
def _mean(x, out, tokens, tile, valid, stride, E: tl.constexpr, D: tl.constexpr):
    """out [D] = mean of x [tokens, D] over the first `valid` slots of the tile, 0 for none."""
    # A step's values stay in one warp's registers: at most 64 rows, and 16 KB.
    STEP: tl.constexpr = min(64, 131072 // (D * x.dtype.element_ty.primitive_bitwidth))
    row = tl.arange(0, STEP)
    column = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for start in range(0, E, STEP):
        token = tl.load(tokens + tile * E + start + row).to(tl.int64)
        values = tl.load(
            x + token[:, None] * stride + column[None, :],
            mask=(start + row < valid)[:, None],
            other=0.0,
        )
        total += tl.sum(values.to(tl.float32), 0)
    tl.store(out + column, total / tl.maximum(valid, 1).to(tl.float32))


@triton.jit(do_not_specialize=["q_tiles", "k_tiles", "heads", "kv_heads"])
def pool_kernel(
    q, k, v,  # [B, tokens, heads, D]
    qc, kc, vc,  # fp32 [B, heads, tiles, D]
    q_tokens, k_tokens,  # int32 [tiles, E]
    q_facts, k_facts,
    q_lengths, k_lengths,
    q_length_stride, k_length_stride,
    q_stride_b, q_stride_t, q_stride_h,
    k_stride_b, k_stride_t, k_stride_h,
    v_stride_b, v_stride_t, v_stride_h,
    q_tiles, k_tiles, heads, kv_heads,
    HAS_Q: tl.constexpr, HAS_K: tl.constexpr, HAS_V: tl.constexpr,
    Q_LENGTHS: tl.constexpr, K_LENGTHS: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One program a tile of q, k or v: grid (tiles of all three * heads, B). Heads follow each
    other, for a token's are neighbours in memory."""
    tile = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    batch = tl.program_id(1).to(tl.int64)
    q_part = q_tiles if HAS_Q else 0
    k_part = k_tiles if HAS_K else 0
    if tile < q_part:
        if HAS_Q:
            valid = valid_tokens(
                q_facts, q_tiles, tile, q_lengths + batch * q_length_stride, True, Q_LENGTHS
            )
            source = q + batch * q_stride_b + head.to(tl.int64) * q_stride_h
            target = qc + ((batch * heads + head) * q_tiles + tile) * D
            _mean(source, target, q_tokens, tile, valid, q_stride_t, E, D)
    elif head < kv_heads:
        tile -= q_part
        if tile < k_part:
            if HAS_K:
                valid = valid_tokens(
                    k_facts, k_tiles, tile, k_lengths + batch * k_length_stride, True, K_LENGTHS
                )
                source = k + batch * k_stride_b + head.to(tl.int64) * k_stride_h
                target = kc + ((batch * kv_heads + head) * k_tiles + tile) * D
                _mean(source, target, k_tokens, tile, valid, k_stride_t, E, D)
        else:
            if HAS_V:
                tile -= k_part
                valid = valid_tokens(
                    k_facts, k_tiles, tile, k_lengths + batch * k_length_stride, True, K_LENGTHS
                )
                source = v + batch * v_stride_b + head.to(tl.int64) * v_stride_h
                target = vc + ((batch * kv_heads + head) * k_tiles + tile) * D
                _mean(source, target, k_tokens, tile, valid, v_stride_t, E, D)
