"""Bitmaps as lists of tiles, by query tile or by key tile, for kernels that walk them."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import valid_tokens


@triton.jit(
    do_not_specialize=[
        "lines", "columns", "heads", "words", "capacity", "mask_stride_b", "mask_stride_h"
    ]
)  # fmt: skip
def lists_kernel(
    mask,  # int32 halves of the bitmap's words: [B, H, Nq, words]
    items,  # uint16 or int32 [B, H, lines, capacity]
    counts,  # int32 [B, H, lines, 3]: whole tiles, pieces, other tiles
    facts,  # of the tiles in the lists
    lengths, length_stride,
    sound,  # int8 [B, H, columns]: with BY_KEY, no token of the query tile has lse = -inf
    mask_stride_b, mask_stride_h,  # in int32 words
    lines, columns, heads, words, capacity,
    BY_KEY: tl.constexpr,  # a line is a key tile and lists query tiles
    LENGTHS: tl.constexpr, E: tl.constexpr, PIECE: tl.constexpr,
    LINES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A line's items: whole tiles ascending from the front; from the back towards the front the
    ragged ones in pieces of PIECE slots (piece p of tile t is t * E / PIECE + p), so that tokens of
    several tiles make up one step. BY_KEY cuts only sound tiles whose size is known beforehand: the
    others, which would take E / PIECE times the memory, go back from item columns - 1. Empty tiles
    are left out. Grid (lines / LINES, H, B)."""
    PIECES: tl.constexpr = E // PIECE
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    inside_line = line < lines
    plane = batch * heads + head
    mask += batch * mask_stride_b + head.to(tl.int64) * mask_stride_h
    lengths += batch * length_stride
    target = items + (plane * lines + line) * capacity

    front = tl.zeros([LINES], tl.int32)
    back = tl.zeros([LINES], tl.int32)
    apart = tl.zeros([LINES], tl.int32)
    for start in range(0, columns, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        inside = tile < columns
        if BY_KEY:
            word = tile.to(tl.int64)[None, :] * words + (line // 32)[:, None]
            shift = (line % 32)[:, None]
        else:
            word = line.to(tl.int64)[:, None] * words + (tile // 32)[None, :]
            shift = (tile % 32)[None, :]
        present = inside_line[:, None] & inside[None, :]
        bit = (tl.load(mask + word, mask=present, other=0) >> shift) & 1
        valid = valid_tokens(facts, columns, tile, lengths, inside, LENGTHS)
        whole = valid == E
        cut = (valid > 0) & (valid < E)
        item = tl.broadcast_to(tile[None, :], [LINES, CHUNK])
        if BY_KEY:
            calm = tl.load(sound + plane * columns + tile, mask=inside, other=0) != 0
            whole = whole & calm
            cut = cut & calm
            if LENGTHS:
                cut = cut & (tl.load(facts + columns + tile, mask=inside, other=0) < 0)
            other = ((valid > 0) & (whole == 0) & (cut == 0)).to(tl.int32)
            if tl.max(other, 0) > 0:
                behind = bit * other[None, :]
                place = columns - apart[:, None] - tl.cumsum(behind, 1)
                _put(target, place, item, behind != 0)
                apart += tl.sum(behind, 1)
        ahead = bit * whole.to(tl.int32)[None, :]
        _put(target, front[:, None] + tl.cumsum(ahead, 1) - 1, item, ahead != 0)
        front += tl.sum(ahead, 1)
        pieces = tl.where(cut, tl.cdiv(valid, PIECE), 0)
        if tl.max(pieces, 0) > 0:
            behind = bit * pieces[None, :]
            place = capacity - 1 - back[:, None] - (tl.cumsum(behind, 1) - behind)
            for piece in tl.static_range(PIECES):
                _put(target, place - piece, item * PIECES + piece, behind > piece)
            back += tl.sum(behind, 1)
    count = counts + (plane * lines + line) * 3
    tl.store(count, front, mask=inside_line)
    tl.store(count + 1, back, mask=inside_line)
    tl.store(count + 2, apart, mask=inside_line)


@triton.jit
def _put(target, place, item, mask):
    tl.store(target[:, None] + place, item.to(target.dtype.element_ty), mask=mask)


# Walks read lists three steps ahead and tokens two: the compiler may place what uses them at the
# top of a step, where it must not wait for memory.


@triton.jit
def moved_up(value, steps):
    """`value` in another variable of a loop over `steps`: Triton does not pipeline a loop that
    hands a variable on as it is, so this adds a zero, which the next compiler drops."""
    return value + (steps >> 31)


@triton.jit
def tile_at(items, step, steps, step_sign, PARTS: tl.constexpr):
    """The tile of a step, PARTS of which walk one; beyond the list of the last, 0 if there is
    none."""
    last = tl.maximum(steps - 1, 0)
    place = step_sign * (tl.minimum(step, last) // PARTS)
    return tl.load(items + place, mask=steps > 0, other=0).to(tl.int32)


@triton.jit
def tile_tokens(
    tile, step, steps, tokens, E: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Tokens [COLUMNS] of a step in its tile."""
    part = tl.minimum(step, tl.maximum(steps - 1, 0)) % (E // COLUMNS)
    return tl.load(tokens + tile * E + part * COLUMNS + tl.arange(0, COLUMNS))


@triton.jit
def next_pieces(items, step, count, COLUMNS: tl.constexpr, PIECE: tl.constexpr):
    """The pieces [COLUMNS] whose slots a step of COLUMNS takes, -1 beyond the list. `items` is at
    the last entry of a line, from where pieces go back."""
    place = step * (COLUMNS // PIECE) + tl.arange(0, COLUMNS) // PIECE
    return tl.load(items - place, mask=place < count, other=0).to(tl.int32) + tl.where(
        place < count, 0, -1
    )


@triton.jit
def piece_tokens(
    piece, tokens, facts, tiles, lengths,
    LENGTHS: tl.constexpr, E: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Tokens [COLUMNS] in the slots of `next_pieces`, -1 where there is none."""
    PIECES: tl.constexpr = E // PIECE
    slot = tl.arange(0, COLUMNS) % PIECE
    token = tl.load(tokens + piece * PIECE + slot, mask=piece >= 0, other=-1)
    if LENGTHS:
        valid = valid_tokens(facts, tiles, piece // PIECES, lengths, piece >= 0, True)
        token = tl.where((piece % PIECES) * PIECE + slot < valid, token, -1)
    return token
