"""Backward of the pooled branch: softmax attention of pooled queries over pooled keys, in fp32."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import valid_tokens


@triton.jit
def _pairs(
    query, key, value, grad, top, total, inner, scale, row_alive, tile_alive,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights A [rows, tiles] and dS [rows, tiles] of the coarse softmax."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    alive = row_alive[:, None] & tile_alive[None, :]
    weight = tl.exp(score - top[:, None]) / total[:, None]
    d_weight = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    d_score = weight * (d_weight - inner[:, None])
    return tl.where(alive, weight, 0.0), tl.where(alive, d_score, 0.0)


@triton.jit
def _rows(
    qc, oc, d_oc, coarse_max, coarse_sum, facts, lengths, row, rows,
    LENGTHS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Query rows with their softmax; those without tokens or without weight give nothing, and
    their vectors (which may hold NaN) are left out."""
    inside = row < rows
    dim = tl.arange(0, D)
    total = tl.load(coarse_sum + row, mask=inside, other=0.0)
    alive = (valid_tokens(facts, rows, row, lengths, inside, LENGTHS) > 0) & (total != 0.0)
    at = row.to(tl.int64)[:, None] * D + dim[None, :]
    query = tl.load(qc + at, mask=alive[:, None], other=0.0)
    grad = tl.load(d_oc + at, mask=alive[:, None], other=0.0)
    result = tl.load(oc + at, mask=alive[:, None], other=0.0)
    top = tl.load(coarse_max + row, mask=alive, other=0.0)
    return query, grad, top, tl.where(alive, total, 1.0), tl.sum(grad * result, 1), alive


@triton.jit
def _tiles(kc, vc, facts, lengths, tile, tiles, LENGTHS: tl.constexpr, D: tl.constexpr):
    """Pooled keys and values, and which tiles are not empty."""
    inside = tile < tiles
    at = tile.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    key = tl.load(kc + at, mask=inside[:, None], other=0.0)
    value = tl.load(vc + at, mask=inside[:, None], other=0.0)
    return key, value, valid_tokens(facts, tiles, tile, lengths, inside, LENGTHS) > 0


@triton.jit(do_not_specialize=["heads", "group", "q_tiles", "k_tiles"])
def coarse_backward_kernel(
    qc, kc, vc,  # fp32 [B, heads, tiles, D]
    oc, d_oc, coarse_max, coarse_sum,  # fp32 [B, H, Nq, D], [B, H, Nq]
    dqc, dkc, dvc,  # fp32, as qc, kc, vc
    q_facts, k_facts, q_lengths, k_lengths, q_length_stride, k_length_stride,
    heads, group, q_tiles, k_tiles, scale,
    Q_LENGTHS: tl.constexpr, K_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of query tiles, then blocks of key tiles; H; B): the former make dqc and walk
    the keys, the latter make dkc and dvc and walk the queries of every head that shares them."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    kv_heads = heads // group
    q_lengths += batch * q_length_stride
    k_lengths += batch * k_length_stride
    q_blocks = tl.cdiv(q_tiles, BLOCK)
    dim = tl.arange(0, D)
    if block < q_blocks:
        row = block * BLOCK + tl.arange(0, BLOCK)
        base = (batch * heads + head) * q_tiles
        query, grad, top, total, inner, alive = _rows(
            qc + base * D, oc + base * D, d_oc + base * D, coarse_max + base, coarse_sum + base,
            q_facts, q_lengths, row, q_tiles, Q_LENGTHS, D,
        )  # fmt: skip
        key_base = (batch * kv_heads + head // group) * k_tiles * D
        acc = tl.zeros([BLOCK, D], tl.float32)
        for start in range(0, k_tiles, BLOCK):
            tile = start + tl.arange(0, BLOCK)
            key, value, some = _tiles(
                kc + key_base, vc + key_base, k_facts, k_lengths, tile, k_tiles, K_LENGTHS, D
            )
            _, d_score = _pairs(
                query, key, value, grad, top, total, inner, scale, alive, some, PRECISION
            )
            acc = tl.dot(d_score, key, acc, input_precision=PRECISION)
        tl.store(
            dqc + base * D + row.to(tl.int64)[:, None] * D + dim[None, :],
            tl.where(alive[:, None], acc * scale, 0.0),
            mask=(row < q_tiles)[:, None],
        )
    elif head < kv_heads:
        tile = (block - q_blocks) * BLOCK + tl.arange(0, BLOCK)
        base = (batch * kv_heads + head) * k_tiles * D
        key, value, some = _tiles(
            kc + base, vc + base, k_facts, k_lengths, tile, k_tiles, K_LENGTHS, D
        )
        d_key = tl.zeros([BLOCK, D], tl.float32)
        d_value = tl.zeros([BLOCK, D], tl.float32)
        for member in range(0, group):
            query_base = (batch * heads + head * group + member) * q_tiles
            for start in range(0, q_tiles, BLOCK):
                row = start + tl.arange(0, BLOCK)
                query, grad, top, total, inner, alive = _rows(
                    qc + query_base * D, oc + query_base * D, d_oc + query_base * D,
                    coarse_max + query_base, coarse_sum + query_base,
                    q_facts, q_lengths, row, q_tiles, Q_LENGTHS, D,
                )  # fmt: skip
                weight, d_score = _pairs(
                    query, key, value, grad, top, total, inner, scale, alive, some, PRECISION
                )
                d_key = tl.dot(tl.trans(d_score), query, d_key, input_precision=PRECISION)
                d_value = tl.dot(tl.trans(weight), grad, d_value, input_precision=PRECISION)
        at = base + tile.to(tl.int64)[:, None] * D + dim[None, :]
        inside = (tile < k_tiles)[:, None]
        tl.store(dkc + at, tl.where(some[:, None], d_key * scale, 0.0), mask=inside)
        tl.store(dvc + at, tl.where(some[:, None], d_value, 0.0), mask=inside)
