"""Backward of block-sparse attention in two passes without atomics: dk and dv by key tile, dq by
query tile. The pooled branch's gradients are added at the end, and each sum is rounded once."""

from __future__ import annotations

import triton
import triton.language as tl

from .attend import LOG2E
from .lists import moved_up, next_pieces, piece_tokens, tile_at, tile_tokens
from .tiles import own_block, token_rows, valid_tokens


@triton.jit
def _key_step(
    dk, dv, key, value, query, grad, norm, inner, scale2, alive,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what COLUMNS queries give to a block of keys."""
    score = tl.dot(key, tl.trans(query), input_precision=PRECISION)
    weight = tl.exp2(score * scale2 - norm[None, :])
    if MASKED:
        weight = tl.where(alive[None, :], weight, 0.0)
    dv = tl.dot(weight.to(grad.dtype), grad, dv, input_precision=PRECISION)
    d_weight = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
    d_score = weight * (d_weight - inner[None, :])
    if MASKED:
        d_score = tl.where(alive[None, :], d_score, 0.0)
    dk = tl.dot(d_score.to(query.dtype), query, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _key_walk_tiles(
    dk, dv, key, value, q, dout, norms, delta, items, step_sign, count, q_tokens,
    q_stride_t, do_stride_t, scale2,
    MASKED: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Query tiles, COLUMNS queries a step."""
    PARTS: tl.constexpr = E // COLUMNS
    slot = tl.arange(0, COLUMNS)
    dim = tl.arange(0, D)
    steps = count * PARTS
    tile = tile_at(items, 0, steps, step_sign, PARTS)
    next_tile = tile_at(items, 1, steps, step_sign, PARTS)
    token = tile_tokens(tile, 0, steps, q_tokens, E, COLUMNS)
    after = tile_tokens(next_tile, 1, steps, q_tokens, E, COLUMNS)
    ahead = tile_at(items, 2, steps, step_sign, PARTS)
    for step in range(0, steps):
        query_at = token_rows(q, token, q_stride_t) + dim[None, :]
        grad_at = token_rows(dout, token, do_stride_t) + dim[None, :]
        place = tile * E + (step % PARTS) * COLUMNS + slot
        norm = tl.load(norms + place)
        inner = tl.load(delta + place)
        alive = norm != float("inf")
        if MASKED:
            query = tl.load(query_at, mask=alive[:, None], other=0.0)
            grad = tl.load(grad_at, mask=alive[:, None], other=0.0)
        else:
            query = tl.load(query_at)
            grad = tl.load(grad_at)
        tile, token = moved_up(next_tile, steps), moved_up(after, steps)
        next_tile = moved_up(ahead, steps)
        after = tile_tokens(ahead, step + 2, steps, q_tokens, E, COLUMNS)
        ahead = tile_at(items, step + 3, steps, step_sign, PARTS)

        dk, dv = _key_step(
            dk, dv, key, value, query, grad, norm, inner, scale2, alive, MASKED, PRECISION
        )  # fmt: skip
    return dk, dv


@triton.jit
def _key_walk_pieces(
    dk, dv, key, value, q, dout, norms, delta, items, count, q_tokens,
    q_stride_t, do_stride_t, scale2,
    E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Pieces of ragged query tiles, as many as make up COLUMNS slots a step."""
    slot = tl.arange(0, COLUMNS) % PIECE
    dim = tl.arange(0, D)
    piece = next_pieces(items, 0, count, COLUMNS, PIECE)
    token = piece_tokens(piece, q_tokens, None, 0, None, False, E, COLUMNS, PIECE)
    ahead = next_pieces(items, 1, count, COLUMNS, PIECE)
    for step in range(0, tl.cdiv(count, COLUMNS // PIECE)):
        alive = token >= 0
        norm = tl.load(norms + piece * PIECE + slot, mask=alive, other=float("inf"))
        inner = tl.load(delta + piece * PIECE + slot, mask=alive, other=0.0)
        query = tl.load(
            token_rows(q, token, q_stride_t) + dim[None, :], mask=alive[:, None], other=0.0
        )
        grad = tl.load(
            token_rows(dout, token, do_stride_t) + dim[None, :], mask=alive[:, None], other=0.0
        )
        piece = moved_up(ahead, count)
        token = piece_tokens(ahead, q_tokens, None, 0, None, False, E, COLUMNS, PIECE)
        ahead = next_pieces(items, step + 2, count, COLUMNS, PIECE)
        dk, dv = _key_step(
            dk, dv, key, value, query, grad, norm, inner, scale2, alive, True, PRECISION
        )  # fmt: skip
    return dk, dv


# A group of 1, the usual one, is a kernel of its own: without the loop over heads the compiler has
# nowhere to hoist what its inner loops need, which would not fit the registers.
@triton.jit(
    do_not_specialize=["heads", "front", "video", "back", "q_tiles", "k_tiles", "capacity"]
)  # fmt: skip
def key_gradients_kernel(
    q, k, v, dout, dk, dv,  # [B, tokens, heads, D]
    norms, delta,  # fp32 [B, H, Nq, E]
    dkc, dvc,  # fp32 [B, G, Nk, D]
    items, counts,  # lists of query tiles by key tile
    q_tokens, k_tokens, k_facts, k_lengths, k_length_stride,
    q_stride_b, q_stride_t, q_stride_h,
    k_stride_b, k_stride_t, k_stride_h,
    v_stride_b, v_stride_t, v_stride_h,
    do_stride_b, do_stride_t, do_stride_h,
    dk_stride_b, dk_stride_t, dk_stride_h,
    dv_stride_b, dv_stride_t, dv_stride_h,
    heads, group, front, video, back, q_tiles, k_tiles, capacity, scale,
    HAS_COARSE: tl.constexpr, K_LENGTHS: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program ROWS keys of a tile: grid (Nk * E / ROWS * G, B)."""
    PARTS: tl.constexpr = E // ROWS
    block, kv_head = own_block(heads // group, front, video, back)
    kv_head = kv_head.to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    tile = block // PARTS
    slot = (block % PARTS) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, D)

    valid = valid_tokens(
        k_facts, k_tiles, tile, k_lengths + batch * k_length_stride, True, K_LENGTHS
    )
    exists = slot < tl.load(k_facts + tile)
    alive = slot < valid
    token = tl.load(k_tokens + tile * E + slot).to(tl.int64)
    key = tl.load(
        k + batch * k_stride_b + kv_head * k_stride_h + token[:, None] * k_stride_t + dim[None, :],
        mask=alive[:, None],
        other=0.0,
    )
    value = tl.load(
        v + batch * v_stride_b + kv_head * v_stride_h + token[:, None] * v_stride_t + dim[None, :],
        mask=alive[:, None],
        other=0.0,
    )
    d_key = tl.zeros([ROWS, D], tl.float32)
    d_value = tl.zeros([ROWS, D], tl.float32)
    for member in range(0, group):
        head = kv_head * group + member
        plane = batch * heads + head
        line = plane * k_tiles + tile
        list_start = items + line * capacity
        queries = q + batch * q_stride_b + head * q_stride_h
        grads = dout + batch * do_stride_b + head * do_stride_h
        first_slot = plane * q_tiles * E
        d_key, d_value = _key_walk_tiles(
            d_key, d_value, key, value, queries, grads, norms + first_slot,
            delta + first_slot, list_start, 1, tl.load(counts + line * 3),
            q_tokens, q_stride_t, do_stride_t, scale * LOG2E,
            False, E, D, COLUMNS, PRECISION,
        )  # fmt: skip
        d_key, d_value = _key_walk_pieces(
            d_key, d_value, key, value, queries, grads, norms + first_slot,
            delta + first_slot, list_start + capacity - 1, tl.load(counts + line * 3 + 1),
            q_tokens, q_stride_t, do_stride_t, scale * LOG2E,
            E, D, COLUMNS, PIECE, PRECISION,
        )  # fmt: skip
        d_key, d_value = _key_walk_tiles(
            d_key, d_value, key, value, queries, grads, norms + first_slot,
            delta + first_slot, list_start + q_tiles - 1, -1, tl.load(counts + line * 3 + 2),
            q_tokens, q_stride_t, do_stride_t, scale * LOG2E,
            True, E, D, COLUMNS, PRECISION,
        )  # fmt: skip

    d_key *= scale
    if HAS_COARSE:
        pooled = ((batch * (heads // group) + kv_head) * k_tiles + tile) * D + dim
        share = 1.0 / tl.maximum(valid, 1).to(tl.float32)
        d_key += (tl.load(dkc + pooled) * share)[None, :]
        d_value += (tl.load(dvc + pooled) * share)[None, :]
    d_key = tl.where(alive[:, None], d_key, 0.0)
    d_value = tl.where(alive[:, None], d_value, 0.0)
    tl.store(
        dk + batch * dk_stride_b + kv_head * dk_stride_h
        + token[:, None] * dk_stride_t + dim[None, :],
        d_key.to(dk.dtype.element_ty), mask=exists[:, None],
    )  # fmt: skip
    tl.store(
        dv + batch * dv_stride_b + kv_head * dv_stride_h
        + token[:, None] * dv_stride_t + dim[None, :],
        d_value.to(dv.dtype.element_ty), mask=exists[:, None],
    )  # fmt: skip


@triton.jit
def _query_step(
    dq, query, grad, norm2, inner, key, value, scale2, alive,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what COLUMNS keys give to a block of queries."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    d_weight = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    d_score = tl.exp2(score * scale2 - norm2[:, None]) * (d_weight - inner[:, None])
    if MASKED:
        d_score = tl.where(alive[None, :], d_score, 0.0)
    return tl.dot(d_score.to(key.dtype), key, dq, input_precision=PRECISION)


@triton.jit
def _query_walk_tiles(
    dq, query, grad, norm2, inner, k, v, items, count, k_tokens, k_stride_t, v_stride_t, scale2,
    E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Whole key tiles, COLUMNS keys a step."""
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
        dq = _query_step(
            dq, query, grad, norm2, inner, key, value, scale2, None, False, PRECISION
        )  # fmt: skip
    return dq


@triton.jit
def _query_walk_pieces(
    dq, query, grad, norm2, inner, k, v, items, count, k_tokens, k_facts, k_tiles, k_lengths,
    k_stride_t, v_stride_t, scale2,
    K_LENGTHS: tl.constexpr, E: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pieces of the others, as many as make up COLUMNS slots a step."""
    dim = tl.arange(0, D)
    token = piece_tokens(
        next_pieces(items, 0, count, COLUMNS, PIECE), k_tokens, k_facts, k_tiles, k_lengths,
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
            ahead, k_tokens, k_facts, k_tiles, k_lengths, K_LENGTHS, E, COLUMNS, PIECE
        )  # fmt: skip
        ahead = next_pieces(items, step + 2, count, COLUMNS, PIECE)
        dq = _query_step(
            dq, query, grad, norm2, inner, key, value, scale2, alive, True, PRECISION
        )  # fmt: skip
    return dq


@triton.jit(
    do_not_specialize=["heads", "group", "front", "video", "back", "q_tiles", "k_tiles", "capacity"]
)  # fmt: skip
def query_gradients_kernel(
    q, k, v, dout, dq,  # [B, tokens, heads, D]
    norms, delta,  # fp32 [B, H, Nq, E]
    dqc,  # fp32 [B, H, Nq, D]
    items, counts,  # lists of key tiles by query tile
    q_tokens, k_tokens, q_facts, k_facts,
    q_lengths, k_lengths, q_length_stride, k_length_stride,
    q_stride_b, q_stride_t, q_stride_h,
    k_stride_b, k_stride_t, k_stride_h,
    v_stride_b, v_stride_t, v_stride_h,
    do_stride_b, do_stride_t, do_stride_h,
    dq_stride_b, dq_stride_t, dq_stride_h,
    heads, group, front, video, back, q_tiles, k_tiles, capacity, scale,
    HAS_COARSE: tl.constexpr, Q_LENGTHS: tl.constexpr, K_LENGTHS: tl.constexpr,
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
    plane = batch * heads + head
    line = plane * q_tiles + tile

    valid = valid_tokens(
        q_facts, q_tiles, tile, q_lengths + batch * q_length_stride, True, Q_LENGTHS
    )
    exists = slot < tl.load(q_facts + tile)
    alive = slot < valid
    token = tl.load(q_tokens + tile * E + slot).to(tl.int64)
    query = tl.load(
        q + batch * q_stride_b + head * q_stride_h + token[:, None] * q_stride_t + dim[None, :],
        mask=alive[:, None],
        other=0.0,
    )
    grad = tl.load(
        dout + batch * do_stride_b + head * do_stride_h
        + token[:, None] * do_stride_t + dim[None, :],
        mask=alive[:, None], other=0.0,
    )  # fmt: skip
    norm = tl.load(norms + line * E + slot)
    inner = tl.load(delta + line * E + slot)
    k += batch * k_stride_b + kv_head * k_stride_h
    v += batch * v_stride_b + kv_head * v_stride_h
    k_lengths += batch * k_length_stride
    whole = tl.load(counts + line * 3)
    pieces = tl.load(counts + line * 3 + 1)
    items += line * capacity
    acc = tl.zeros([ROWS, D], tl.float32)
    acc = _query_walk_tiles(
        acc, query, grad, norm, inner, k, v, items, whole, k_tokens, k_stride_t, v_stride_t,
        scale * LOG2E, E, D, COLUMNS, PRECISION,
    )  # fmt: skip
    acc = _query_walk_pieces(
        acc, query, grad, norm, inner, k, v, items + capacity - 1, pieces, k_tokens, k_facts,
        k_tiles, k_lengths, k_stride_t, v_stride_t, scale * LOG2E,
        K_LENGTHS, E, D, COLUMNS, PIECE, PRECISION,
    )  # fmt: skip
    # Rows without weight have no fine gradient, whatever they met above.
    acc = tl.where((norm == float("inf"))[:, None], 0.0, acc * scale)
    if HAS_COARSE:
        share = 1.0 / tl.maximum(valid, 1).to(tl.float32)
        acc += (tl.load(dqc + line * D + dim) * share)[None, :]
    acc = tl.where(alive[:, None], acc, 0.0)
    tl.store(
        dq + batch * dq_stride_b + head * dq_stride_h
        + token[:, None] * dq_stride_t + dim[None, :],
        acc.to(dq.dtype.element_ty), mask=exists[:, None],
    )  # fmt: skip
