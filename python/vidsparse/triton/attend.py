"""Block-sparse attention over lists of key tiles, the gated pooled branch added at the end."""

from __future__ import annotations

import triton
import triton.language as tl

from .lists import moved_up, next_pieces, piece_tokens, tile_at, tile_tokens
from .tiles import own_block, token_rows, valid_tokens

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _step(acc, total, top, query, key, value, scale2, alive, MASKED: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """Online softmax over COLUMNS keys. `top` is the running maximum of the raw products; weights
    are 2^(scale2 * (product - top)), scale2 >= 0."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if MASKED:
        score = tl.where(alive[None, :], score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher * scale2)
    weight = tl.exp2(score * scale2 - base[:, None])
    shrink = tl.exp2(top * scale2 - base)
    total = total * shrink + tl.sum(weight, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
    return acc, total, higher


@triton.jit
def _walk_tiles(
    acc, total, top, query, k, v, items, count, k_tokens, k_stride_t, v_stride_t, scale2,
    E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Whole tiles, COLUMNS keys a step."""
    PARTS: tl.constexpr = E // COLUMNS
    dim = tl.arange(0, D)
    steps = count * PARTS
    token = tile_tokens(tile_at(items, 0, steps, 1, PARTS), 0, steps, k_tokens, E, COLUMNS)
    after = tile_tokens(tile_at(items, 1, steps, 1, PARTS), 1, steps, k_tokens, E, COLUMNS)
    ahead = tile_at(items, 2, steps, 1, PARTS)
    for step in range(0, steps):
        key = tl.load(token_rows(k, token, k_stride_t) + dim[None, :])
        value = tl.load(token_rows(v, token, v_stride_t) + dim[None, :])
        token = moved_up(after, steps)
        after = tile_tokens(ahead, step + 2, steps, k_tokens, E, COLUMNS)
        ahead = tile_at(items, step + 3, steps, 1, PARTS)
        acc, total, top = _step(
            acc, total, top, query, key, value, scale2, None, False, PRECISION
        )  # fmt: skip
    return acc, total, top


@triton.jit
def _walk_pieces(
    acc, total, top, query, k, v, items, count, k_tokens, k_facts, k_tiles, lengths,
    k_stride_t, v_stride_t, scale2,
    K_LENGTHS: tl.constexpr, E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pieces of the others, as many as make up COLUMNS slots a step."""
    dim = tl.arange(0, D)
    token = piece_tokens(
        next_pieces(items, 0, count, COLUMNS, PIECE), k_tokens, k_facts, k_tiles, lengths,
        K_LENGTHS, E, COLUMNS, PIECE,
    )  # fmt: skip
    ahead = next_pieces(items, 1, count, COLUMNS, PIECE)
    for step in range(0, tl.cdiv(count, COLUMNS // PIECE)):
        alive = token >= 0
        key = tl.load(
            token_rows(k, token, k_stride_t) + dim[None, :], mask=alive[:, None], other=0.0
        )
        value = tl.load(
            token_rows(v, token, v_stride_t) + dim[None, :], mask=alive[:, None], other=0.0
        )
        token = piece_tokens(
            ahead, k_tokens, k_facts, k_tiles, lengths, K_LENGTHS, E, COLUMNS, PIECE
        )  # fmt: skip
        ahead = next_pieces(items, step + 2, count, COLUMNS, PIECE)
        acc, total, top = _step(
            acc, total, top, query, key, value, scale2, alive, True, PRECISION
        )  # fmt: skip
    return acc, total, top


@triton.jit(
    do_not_specialize=[
        "heads", "group", "front", "video", "back", "q_tiles", "k_tiles", "capacity", "q_total",
    ]
)  # fmt: skip
def attend_kernel(
    q, k, v, gate, out,  # [B, tokens, heads, D]
    lse,  # fp32 [B, H, Sq]
    oc,  # fp32 [B, H, Nq, D]
    items, counts,  # lists of key tiles by query tile
    q_tokens, k_tokens, q_facts, k_facts,
    q_lengths, k_lengths, q_length_stride, k_length_stride,
    q_stride_b, q_stride_t, q_stride_h,
    k_stride_b, k_stride_t, k_stride_h,
    v_stride_b, v_stride_t, v_stride_h,
    g_stride_b, g_stride_t, g_stride_h,
    o_stride_b, o_stride_t, o_stride_h,
    heads, group, front, video, back, q_tiles, k_tiles, capacity, q_total,
    scale, gate_value,
    NEGATIVE: tl.constexpr,  # the scale is
    GATE: tl.constexpr,  # 0 none, 1 a number, 2 a tensor
    HAS_LSE: tl.constexpr, Q_LENGTHS: tl.constexpr, K_LENGTHS: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program ROWS queries of a tile: grid (Nq * E / ROWS * H, B)."""
    PARTS: tl.constexpr = E // ROWS
    block, head = own_block(heads, front, video, back)
    batch = tl.program_id(1).to(tl.int64)
    tile = block // PARTS
    slot = (block % PARTS) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, D)
    kv_head = (head // group).to(tl.int64)
    head = head.to(tl.int64)
    line = (batch * heads + head) * q_tiles + tile

    q_lengths += batch * q_length_stride
    valid = valid_tokens(q_facts, q_tiles, tile, q_lengths, True, Q_LENGTHS)
    alive = slot < valid
    token = tl.load(q_tokens + tile * E + slot).to(tl.int64)
    query = tl.load(
        q + batch * q_stride_b + head * q_stride_h + token[:, None] * q_stride_t + dim[None, :],
        mask=alive[:, None],
        other=0.0,
    )
    # The loop takes the maximum before it scales, so a negative sign goes to the query, in a kernel
    # of its own: arithmetic here makes Triton hold the query in registers. A scale of 0 must not
    # meet the -inf of masked scores.
    if NEGATIVE:
        query = (query.to(tl.float32) * -1.0).to(query.dtype)
    scale2 = tl.maximum(tl.abs(scale) * LOG2E, 1e-37)
    k += batch * k_stride_b + kv_head * k_stride_h
    v += batch * v_stride_b + kv_head * v_stride_h
    k_lengths += batch * k_length_stride
    whole = tl.load(counts + line * 3)
    pieces = tl.load(counts + line * 3 + 1)
    items += line * capacity

    acc = tl.zeros([ROWS, D], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    acc, total, top = _walk_tiles(
        acc, total, top, query, k, v, items, whole, k_tokens, k_stride_t, v_stride_t, scale2,
        E, D, COLUMNS, PRECISION,
    )  # fmt: skip
    acc, total, top = _walk_pieces(
        acc, total, top, query, k, v, items + capacity - 1, pieces, k_tokens, k_facts, k_tiles,
        k_lengths, k_stride_t, v_stride_t, scale2, K_LENGTHS, E, D, COLUMNS, PIECE, PRECISION,
    )  # fmt: skip

    exists = slot < tl.load(q_facts + tile)  # in memory; pads of packed tiles are written too
    nothing = total == 0.0
    result = tl.where(nothing[:, None], 0.0, acc / total[:, None])
    if GATE != 0:
        pooled = tl.load(oc + line * D + dim)[None, :]
        if GATE == 1:
            result += gate_value * pooled
        else:
            weight = tl.load(
                gate + batch * g_stride_b + head * g_stride_h
                + token[:, None] * g_stride_t + dim[None, :],
                mask=alive[:, None], other=0.0,
            )  # fmt: skip
            result += weight.to(tl.float32) * pooled
    result = tl.where(alive[:, None], result, 0.0)
    tl.store(
        out + batch * o_stride_b + head * o_stride_h + token[:, None] * o_stride_t + dim[None, :],
        result.to(out.dtype.element_ty),
        mask=exists[:, None],
    )
    if HAS_LSE:
        norm = top * tl.abs(scale) + tl.log(total)
        norm = tl.where(nothing | (alive == 0), float("-inf"), norm)
        tl.store(lse + (batch * heads + head) * q_total + token, norm, mask=exists)
