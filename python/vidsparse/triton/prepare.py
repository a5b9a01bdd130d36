"""What the backward passes need of each query tile: delta, dgate, the gradient of oc."""

from __future__ import annotations

import triton
import triton.language as tl

from .attend import LOG2E
from .tiles import valid_tokens


@triton.jit(do_not_specialize=["heads", "q_tiles", "q_total"])
def prepare_kernel(
    out, dout, gate, dgate,  # [B, Sq, H, D]
    oc, d_oc,  # fp32 [B, H, Nq, D]
    lse, dlse,  # fp32 [B, H, Sq]
    delta, norms,  # fp32 [B, H, Nq, E]: by slot, so that a step of the walks reads them in a row
    sound,  # int8 [B, H, Nq]: no token of the tile has lse = -inf
    q_tokens, q_facts, q_lengths, q_length_stride,
    o_stride_b, o_stride_t, o_stride_h,
    do_stride_b, do_stride_t, do_stride_h,
    g_stride_b, g_stride_t, g_stride_h,
    dg_stride_b, dg_stride_t, dg_stride_h,
    heads, q_tiles, q_total, gate_value,
    GATE: tl.constexpr,  # 0 none, 1 a number, 2 a tensor
    HAS_DGATE: tl.constexpr, HAS_DLSE: tl.constexpr, Q_LENGTHS: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """delta = sum_d dout * (out - gate * oc) - dlse; norms = lse in base 2, +inf (a weight of 0)
    where a row is a pad or has no weight. Grid (Nq, H, B)."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, 64)
    dim = tl.arange(0, D)
    plane = batch * heads + head
    valid = valid_tokens(
        q_facts, q_tiles, tile, q_lengths + batch * q_length_stride, True, Q_LENGTHS
    )
    capacity = tl.load(q_facts + tile)
    out += batch * o_stride_b + head * o_stride_h
    dout += batch * do_stride_b + head * do_stride_h
    pooled = tl.zeros([1, D], tl.float32)
    if GATE != 0:
        pooled = tl.load(oc + (plane * q_tiles + tile) * D + dim)[None, :]
    d_pooled = tl.zeros([D], tl.float32)
    dead_rows = 0
    for start in range(0, E, 64):
        alive = start + row < valid
        exists = start + row < capacity
        token = tl.load(q_tokens + tile * E + start + row).to(tl.int64)
        grad = tl.load(
            dout + token[:, None] * do_stride_t + dim[None, :], mask=alive[:, None], other=0.0
        ).to(tl.float32)
        result = tl.load(
            out + token[:, None] * o_stride_t + dim[None, :], mask=alive[:, None], other=0.0
        ).to(tl.float32)
        if GATE == 1:
            result -= gate_value * pooled
            d_pooled += tl.sum(grad, 0) * gate_value
        if GATE == 2:
            weight = tl.load(
                gate + batch * g_stride_b + head * g_stride_h
                + token[:, None] * g_stride_t + dim[None, :],
                mask=alive[:, None], other=0.0,
            ).to(tl.float32)  # fmt: skip
            result -= weight * pooled
            d_pooled += tl.sum(grad * weight, 0)
            if HAS_DGATE:
                tl.store(
                    dgate + batch * dg_stride_b + head * dg_stride_h
                    + token[:, None] * dg_stride_t + dim[None, :],
                    tl.where(alive[:, None], grad * pooled, 0.0).to(dgate.dtype.element_ty),
                    mask=exists[:, None],
                )  # fmt: skip
        total = tl.sum(tl.where(alive[:, None], grad * result, 0.0), 1)
        at = plane * q_total + token
        norm = tl.load(lse + at, mask=alive, other=float("-inf"))
        dead = norm == float("-inf")
        if HAS_DLSE:
            total -= tl.load(dlse + at, mask=alive, other=0.0)
        place = (plane * q_tiles + tile) * E + start + row
        tl.store(delta + place, tl.where(dead, 0.0, total))
        tl.store(norms + place, tl.where(dead, float("inf"), norm * LOG2E))
        dead_rows += tl.sum((dead & alive).to(tl.int32), 0)
    if GATE != 0:
        tl.store(d_oc + (plane * q_tiles + tile) * D + dim, d_pooled)
    tl.store(sound + plane * q_tiles + tile, (dead_rows == 0).to(tl.int8))
