"""Scores of pooled tiles, their softmax and output, and the exact top k of every row as bits."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import valid_tokens

NOTHING = tl.constexpr(-(2**31))  # orders below every score, NaN included: not a candidate


# A chunk of score rows is [ROWS, CHUNK / LANES, LANES]: Triton spreads LANES over one warp and ROWS
# over several, so that a row is counted inside a warp, without barriers.
LANES = tl.constexpr(128)


@triton.jit
def _sort_keys(score, candidate):
    """int32 that order as scores do: -0 and +0 tie, NaN lies below -inf."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(score == score, key, NOTHING + 1)
    return tl.where(candidate, key, NOTHING)


@triton.jit
def _tile_rules(facts, tiles, tile, lengths, LENGTHS: tl.constexpr):
    """Of key tiles: not empty; a chunk of a Plain segment."""
    inside = tile < tiles
    some = valid_tokens(facts, tiles, tile, lengths, inside, LENGTHS) > 0
    plain = tl.load(facts + 3 * tiles + tile, mask=inside, other=0) != 0
    return some, plain


@triton.jit
def _score_rows(
    qc, kc, vc, scores, oc, coarse_max, coarse_sum,  # at the (batch, head); scores at the program
    k_facts, k_lengths, first_row, rows, k_tiles, pitch, scale,
    HAS_COARSE: tl.constexpr, K_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Writes the scores of BM rows, [BM, pitch], and their coarse output."""
    line = tl.arange(0, BM)
    row = first_row + line
    dim = tl.arange(0, D)
    inside_row = row < rows
    query = tl.load(
        qc + row.to(tl.int64)[:, None] * D + dim[None, :], mask=inside_row[:, None], other=0.0
    )
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    for start in range(0, k_tiles, BN):
        tile = start + tl.arange(0, BN)
        inside = tile < k_tiles
        address = tile.to(tl.int64)[:, None] * D + dim[None, :]
        key = tl.load(kc + address, mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        tl.store(scores + line[:, None] * pitch + tile[None, :], score)
        if HAS_COARSE:
            some = valid_tokens(k_facts, k_tiles, tile, k_lengths, inside, K_LENGTHS) > 0
            score = tl.where(some[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp(score - base[:, None])
            shrink = tl.exp(top - base)
            total = total * shrink + tl.sum(weight, 1)
            value = tl.load(vc + address, mask=inside[:, None], other=0.0)
            acc = acc * shrink[:, None] + tl.dot(weight, value, input_precision=PRECISION)
            top = higher
    if HAS_COARSE:
        mean = tl.where(total[:, None] == 0.0, 0.0, acc / total[:, None])
        tl.store(oc + row.to(tl.int64)[:, None] * D + dim[None, :], mean, mask=inside_row[:, None])
        tl.store(coarse_max + row, tl.where(total == total, top, total), mask=inside_row)
        tl.store(coarse_sum + row, total, mask=inside_row)


@triton.jit(
    do_not_specialize=[
        "batch_size", "heads", "group", "rows", "k_tiles", "words", "top_k", "plain_k",
        "exempt", "always_stride_b", "always_stride_h",
    ]
)  # fmt: skip
def select_kernel(
    qc, kc, vc,  # fp32 [B, heads, tiles, D]
    oc, coarse_max, coarse_sum,  # fp32 [B, H, Nq, D], [B, H, Nq]
    mask, always,  # int32 halves of the bitmap's words: [B, H, Nq, words]
    scratch,  # fp32 [programs, BM, pitch]
    q_facts, k_facts,
    k_lengths, k_length_stride,
    always_stride_b, always_stride_h,  # in int32 words
    batch_size, heads, group, rows, k_tiles, pitch, words,
    scale, top_k, plain_k, exempt,
    HAS_COARSE: tl.constexpr, HAS_ALWAYS: tl.constexpr, K_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,  # a block of scores
    ROWS: tl.constexpr, CHUNK: tl.constexpr,  # a block of the search for the k-th score
    WHOLE: tl.constexpr,  # a row fits one chunk
):  # fmt: skip
    """A few programs (as many as there is scratch for) walk all blocks of BM query tiles. Scores
    of a block go to the program's scratch, which stays in L2, and are read back as rows: the k-th
    score is found by bisection on its bits, 32 counts of a row that is held in registers."""
    blocks = tl.cdiv(rows, BM)
    scores = scratch + tl.program_id(0).to(tl.int64) * BM * pitch
    for item in range(tl.program_id(0), batch_size * heads * blocks, tl.num_programs(0)):
        plane = item // blocks
        batch = plane // heads
        first_row = (item % blocks) * BM
        query_head = plane.to(tl.int64) * rows
        key_head = ((batch * (heads // group)) + (plane % heads) // group).to(tl.int64) * k_tiles
        lengths = k_lengths + batch.to(tl.int64) * k_length_stride
        tl.debug_barrier()  # the block before has been read
        _score_rows(
            qc + query_head * D, kc + key_head * D, vc + key_head * D, scores,
            oc + query_head * D, coarse_max + query_head, coarse_sum + query_head,
            k_facts, lengths, first_row, rows, k_tiles, pitch, scale,
            HAS_COARSE, K_LENGTHS, PRECISION, D, BM, BN,
        )  # fmt: skip
        tl.debug_barrier()
        always_head = (
            always
            + batch.to(tl.int64) * always_stride_b
            + (plane % heads).to(tl.int64) * always_stride_h
        )
        for start in range(0, BM, ROWS):
            _choose_rows(
                scores + start * pitch, mask + query_head * words, always_head,
                q_facts, k_facts, lengths, first_row + start, rows, k_tiles, pitch, words,
                top_k, plain_k, exempt,
                HAS_ALWAYS, K_LENGTHS, ROWS, CHUNK, WHOLE,
            )  # fmt: skip


@triton.jit
def _load_keys(
    address, tile, pitch, facts, tiles, lengths, exempt, LENGTHS: tl.constexpr
):  # fmt: skip
    """Sort keys of a chunk of score rows. Exempt Plain chunks are no candidates."""
    some, plain = _tile_rules(facts, tiles, tile, lengths, LENGTHS)
    candidate = some & ((plain == 0) | (exempt == 0))
    score = tl.load(address[:, None, None] + tile, mask=tile < pitch, other=0.0)
    return _sort_keys(score, candidate)


@triton.jit
def _row_sums(values):
    """[ROWS] of int32 [ROWS, CHUNK / LANES, LANES]."""
    return tl.sum(tl.sum(values, 1), 1)


@triton.jit
def _count_above(
    bound, keys, address, pitch, facts, tiles, lengths, exempt,
    LENGTHS: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Keys of each row above the row's bound, out of `keys` where they are the whole row."""
    if WHOLE:
        count = _row_sums((keys > bound[:, None, None]).to(tl.int32))
    else:
        count = tl.zeros_like(bound)
        for start in range(0, tiles, CHUNK):
            tile = start + _chunk_tiles(CHUNK)
            chunk = _load_keys(address, tile, pitch, facts, tiles, lengths, exempt, LENGTHS)
            count += _row_sums((chunk > bound[:, None, None]).to(tl.int32))
    return count


@triton.jit
def _chunk_tiles(CHUNK: tl.constexpr):
    """Tile numbers [1, CHUNK / LANES, LANES] of the first chunk."""
    block = tl.arange(0, CHUNK // LANES) * LANES
    return block[None, :, None] + tl.arange(0, LANES)[None, None, :]


@triton.jit
def _choose_rows(
    scores, mask, always, q_facts, k_facts, lengths, first_row, rows, k_tiles, pitch, words,
    top_k, plain_k, exempt,
    HAS_ALWAYS: tl.constexpr, K_LENGTHS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Bitmap rows first_row .. first_row + ROWS - 1 from their scores."""
    line = tl.arange(0, ROWS)
    row = first_row + line
    inside_row = row < rows
    plain_row = tl.load(q_facts + 3 * rows + row, mask=inside_row, other=0) != 0
    column = _chunk_tiles(CHUNK)
    address = scores + line * pitch
    keys = tl.zeros([1, 1, 1], tl.int32)
    if WHOLE:
        keys = _load_keys(address, column, pitch, k_facts, k_tiles, lengths, exempt, K_LENGTHS)

    candidates = _count_above(
        tl.full([ROWS], NOTHING, tl.int32), keys, address, pitch, k_facts, k_tiles, lengths,
        exempt, K_LENGTHS, CHUNK, WHOLE,
    )  # fmt: skip
    wanted = tl.minimum(top_k + tl.where(exempt != 0, 0, plain_k), candidates)
    # The largest threshold that at least `wanted` keys reach, bit by bit from the top.
    threshold = tl.full([ROWS], NOTHING, tl.int32)
    reached = candidates
    bit = NOTHING + 0
    while bit != 0:
        for _ in range(4):
            trial = threshold ^ bit
            reach = _count_above(
                trial - 1, keys, address, pitch, k_facts, k_tiles, lengths,
                exempt, K_LENGTHS, CHUNK, WHOLE,
            )  # fmt: skip
            threshold = tl.where(reach >= wanted, trial, threshold)
            reached = tl.where(reach >= wanted, reach, reached)
            bit = (bit >> 1) & 0x7FFFFFFF
        # Done before the last bit where no row has ties or near ones across its threshold.
        bit = tl.where(tl.max(reached - wanted, 0) == 0, 0, bit)
    above = _count_above(
        threshold, keys, address, pitch, k_facts, k_tiles, lengths,
        exempt, K_LENGTHS, CHUNK, WHOLE,
    )  # fmt: skip

    spare = wanted - above  # ties at the threshold that are kept, the lowest tiles first
    for start in range(0, words * 32, CHUNK):
        tile = start + column
        if WHOLE:
            here = keys
        else:
            here = _load_keys(address, tile, pitch, k_facts, k_tiles, lengths, exempt, K_LENGTHS)
        ties = (here == threshold[:, None, None]).to(tl.int32)
        blocks = tl.sum(ties, 2)
        rank = tl.cumsum(ties, 2) + (tl.cumsum(blocks, 1) - blocks)[:, :, None]
        kept = (ties != 0) & (rank <= spare[:, None, None])
        spare -= tl.sum(blocks, 1)
        some, plain = _tile_rules(k_facts, k_tiles, tile, lengths, K_LENGTHS)
        chosen = (here > threshold[:, None, None]) | kept | plain_row[:, None, None]
        chosen = chosen | (plain & (exempt != 0))
        if HAS_ALWAYS:
            word = tl.load(
                always + row.to(tl.int64)[:, None, None] * words + tile // 32,
                mask=inside_row[:, None, None] & (tile < k_tiles),
                other=0,
            )
            chosen = chosen | (((word >> (tile % 32)) & 1) != 0)
        chosen = chosen & some
        bits = chosen.to(tl.int32) << (tile % 32)
        bits = tl.sum(tl.reshape(bits, [ROWS, CHUNK // LANES, LANES // 32, 32]), 3)
        block = start // 32 + tl.arange(0, CHUNK // LANES) * (LANES // 32)
        half = block[None, :, None] + tl.arange(0, LANES // 32)[None, None, :]
        tl.store(
            mask + row.to(tl.int64)[:, None, None] * words + half,
            bits,
            mask=inside_row[:, None, None] & (half < words),
        )
