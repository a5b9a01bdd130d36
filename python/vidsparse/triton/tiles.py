"""Where tokens lie: device tables of a TileLayout, and how kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import TileLayout

PIECE = 16  # slots of a ragged tile that a list of keys names at once


@dataclass(frozen=True)
class Tables:
    """A TileLayout on a device. Kernels know no boxes and no segments: a slot's token is looked up,
    and what a tile holds is a number, so one kernel reads every layout in place."""

    tokens: Tensor  # int32 [tiles, E]: the token in each slot, -1 in pads
    facts: Tensor  # int32 [4, tiles]: capacity, length column (-1: none), first slot in it, plain
    tiles: int
    slots: int  # E
    entries: tuple[int, ...]  # of a list of tiles, most of one tile, of two, ...
    pieces: int  # of the tiles that are ragged without run-time lengths too
    front: int  # tiles of text before the first video, 0 without one
    back: int  # behind the last one

    def blocks(self, rows: int) -> int:
        """Programs of `rows` slots each that make up all tiles."""
        return self.tiles * self.slots // rows

    def turns(self, rows: int) -> tuple[int, int, int]:
        """Of `rows` slots each, blocks of text before the video, of the video, and of text behind
        it: see own_block."""
        front, back = (n * self.slots // rows for n in (self.front, self.back))
        return front, self.blocks(rows) - front - back, back


@lru_cache(maxsize=64)
def tables_of(layout: TileLayout, device: torch.device) -> Tables:
    """Made once for a layout and device; the copy is the only time the host touches them."""
    tokens = layout.slot_tokens()
    facts = torch.zeros(4, layout.tiles, dtype=torch.int32, device="cpu")
    facts[0] = (tokens >= 0).sum(1)
    facts[1] = -1
    for part in layout.parts:
        where = slice(part.first_tile, part.first_tile + part.tiles)
        if layout.sequence.is_packed:
            facts[1, where] = torch.arange(part.tiles, device="cpu")
        elif part.plain:
            facts[1, where] = part.plain_index
            facts[2, where] = torch.arange(part.tiles, device="cpu") * layout.slots
            facts[3, where] = 1
    if layout.tiles == 0:  # kernels look one list entry ahead, even of an empty list
        tokens = torch.zeros(1, layout.slots, dtype=torch.int64, device="cpu")
    pieces = (facts[0] + PIECE - 1) // PIECE
    fixed = facts[1] < 0
    ragged = int(pieces[facts[0] < layout.slots].sum())
    pieces[fixed & (facts[0] == layout.slots)] = 1
    entries = pieces.sort(descending=True).values.cumsum(0).tolist()
    videos = [part for part in layout.parts if part.tiles > 0 and not part.plain]
    front = videos[0].first_tile if videos else 0
    back = layout.tiles - videos[-1].first_tile - videos[-1].tiles if videos else 0
    return Tables(
        tokens.to(device, torch.int32), facts.to(device), layout.tiles, layout.slots,
        (0, *entries), ragged, front, back,
    )  # fmt: skip


@triton.jit
def own_block(heads, front, video, back):
    """The block and the head of this program of a grid (blocks * heads, batch). Text beside the
    video may attend to everything, ten times what others do: that of a batch entry's heads comes
    first, or a launch would end with a few programs at work. The others go head by head, so that
    programs that run together read the same rows of the other side."""
    index = tl.program_id(0)
    text = front + back
    of_text = index < text * heads
    index = tl.where(of_text, index, index - text * heads)
    of_head = tl.where(of_text, text, video)
    turn = index % of_head
    behind = tl.where(turn < front, turn, turn + video)
    return tl.where(of_text, behind, turn + front), index // of_head


@triton.jit
def valid_tokens(facts, tiles, tile, lengths, inside, HAS_LENGTHS: tl.constexpr):
    """n_j of `tile` (a scalar or a vector of tile indices; 0 where not `inside`). `lengths` is at
    the batch entry's row of run-time lengths."""
    capacity = tl.load(facts + tile, mask=inside, other=0)
    if HAS_LENGTHS:
        column = tl.load(facts + tiles + tile, mask=inside, other=-1)
        first = tl.load(facts + 2 * tiles + tile, mask=inside, other=0)
        length = tl.load(lengths + column, mask=column >= 0, other=0)
        here = tl.minimum(tl.maximum(length - first, 0), capacity)
        capacity = tl.where(column >= 0, here, capacity)
    return capacity


@triton.jit
def token_rows(x, token, stride):
    """Pointers [n, 1] to the first elements of the tokens' rows: of 2 bytes an element with one
    32-bit multiplication each, where 64-bit ones would take six instructions in every step."""
    if x.dtype.element_ty.primitive_bitwidth == 16 and stride.dtype == tl.int32:
        bytes = (stride.to(tl.uint32) * 2).to(tl.uint64)
        row = token.to(tl.uint32).to(tl.uint64) * bytes
        start = x.to(tl.pointer_type(tl.int8)) + row[:, None]
        return start.to(tl.pointer_type(x.dtype.element_ty))
    return x + token.to(tl.int64)[:, None] * stride
