"""A Sequence cut into tiles: counts, and where the tokens of each tile lie."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .errors import refuse
from .sequence import Packed, Plain, Sequence, Tile, parse_tile


@dataclass(frozen=True)
class Part:
    """One segment, resolved. A Plain segment is a grid of one row cut into boxes of one row; so are
    packed tiles, as one part."""

    plain: bool
    first_token: int  # of the sequence
    first_tile: int  # of the sequence
    tiles: int
    grid: Tile  # T, H, W; plain and packed: 1, 1, tokens
    tile_grid: Tile  # n_T, n_H, n_W
    box: Tile  # a, b, c; plain and packed: 1, 1, E
    plain_index: int  # which Plain segment (the column of its run-time length), else -1


@dataclass(frozen=True)
class Box:
    """The tokens of one tile, as a box in the raster of its segment, w fastest."""

    part: int  # index into TileLayout.parts
    origin: Tile  # t, h, w of its first token inside the segment
    extent: Tile  # a', b', c': sides after clipping at the grid's edge

    @property
    def capacity(self) -> int:
        """Tokens inside the grid: n_j, unless run-time lengths make it less."""
        return self.extent[0] * self.extent[1] * self.extent[2]


class TileLayout:
    """Tiles are numbered segment by segment; inside a video, tile index =
    ((t/a)*n_H + h/b)*n_W + w/c. Immutable. Raises ArgumentError naming `tile` or `sequence`."""

    def __init__(self, sequence: Sequence, tile: Tile = (4, 4, 4)):
        if not isinstance(sequence, Sequence):
            refuse("sequence", "a Sequence", repr(sequence))
        self.sequence = sequence
        self.tile = parse_tile(tile)
        self.slots = math.prod(self.tile)  # E
        if sequence.is_packed:
            packed = sequence.packed
            if packed.tiles < 0:
                refuse("sequence", "a tile count >= 0", sequence)
            if packed.slots != self.slots:
                expected = f"{self.slots} slots a packed tile, as the tile has"
                refuse("sequence", expected, sequence)
        parts: list[Part] = []
        token, index, plains = 0, 0, 0
        for segment in sequence.segments or ((sequence.packed,) if sequence.is_packed else ()):
            is_plain = isinstance(segment, Plain)
            box = (1, 1, self.slots)
            if isinstance(segment, Plain):
                grid = (1, 1, segment.length)
            elif isinstance(segment, Packed):
                grid = (1, 1, segment.tiles * self.slots)
            else:
                grid, box = (segment.t, segment.h, segment.w), self.tile
            if min(grid) < 0:
                refuse("sequence", "sides >= 0", sequence)
            counts = (-(-grid[0] // box[0]), -(-grid[1] // box[1]), -(-grid[2] // box[2]))
            part = Part(
                is_plain, token, index, math.prod(counts), grid, counts, box,
                plains if is_plain else -1,
            )  # fmt: skip
            parts.append(part)
            token, index, plains = token + math.prod(grid), index + part.tiles, plains + is_plain
        if index * self.slots >= 2**63:
            refuse("sequence", "fewer than 2^63 slots", sequence)
        self.parts = tuple(parts)
        self.tokens = token  # rows of the tensors, pad slots of packed tiles included
        self.tiles = index  # N
        self.plain_tiles = sum(part.tiles for part in parts if part.plain)  # P
        self.plain_segments = plains

    @property
    def video_tiles(self) -> int:
        """N_v: what k counts. Packed tiles are video tiles."""
        return self.tiles - self.plain_tiles

    @property
    def length_columns(self) -> int:
        """Columns of this side's run-time lengths: tiles when packed, else Plain segments."""
        return self.tiles if self.sequence.is_packed else self.plain_segments

    def box(self, index: int) -> Box:
        """Where tile `index` lies."""
        for number, part in enumerate(self.parts):
            if 0 <= index < part.first_tile + part.tiles:
                local = index - part.first_tile
                _, n_h, n_w = part.tile_grid
                place = (local // (n_h * n_w), local // n_w % n_h, local % n_w)
                t, h, w = (p * side for p, side in zip(place, part.box))
                a, b, c = (
                    min(side, g - o) for side, g, o in zip(part.box, part.grid, (t, h, w))
                )
                return Box(number, (t, h, w), (a, b, c))
        refuse("tile index", f"0 to {self.tiles - 1}", index)

    def is_plain(self, index: int) -> bool:
        return self.parts[self.box(index).part].plain

    def slot_tokens(self) -> torch.Tensor:
        """int64 [tiles, E]: the token in each slot of each tile in slot order (compacted: slot
        ((t%a)*b' + h%b)*c' + w%c), -1 for pads. Run-time lengths are not known here: they keep the
        first n_j slots."""
        table = torch.full((self.tiles, self.slots), -1, dtype=torch.int64, device="cpu")
        for index in range(self.tiles):
            box = self.box(index)
            part = self.parts[box.part]
            t, h, w = (torch.arange(o, o + e, device="cpu") for o, e in zip(box.origin, box.extent))
            _, height, width = part.grid
            tokens = (t[:, None, None] * height + h[:, None]) * width + w
            table[index, : box.capacity] = tokens.flatten() + part.first_token
        return table

    def padding_waste(self) -> float:
        """Slots of all tiles per token, less one: what padded copies would cost; 0 when packed."""
        if self.sequence.is_packed or self.tokens == 0:
            return 0.0
        return self.tiles * self.slots / self.tokens - 1.0


@lru_cache(maxsize=1024)
def layout_of(sequence: Sequence, tile: Tile) -> TileLayout:
    """A cached TileLayout."""
    return TileLayout(sequence, tile)


def top_k_of(sparsity: float, tiles: int) -> int:
    """k = max(1, min(ceil((1 - sparsity) * tiles), tiles)) in double precision; 0 for no tiles."""
    if not isinstance(sparsity, numbers.Real) or not 0.0 <= sparsity < 1.0:
        refuse("sparsity", "a number in [0, 1)", repr(sparsity))
    return max(1, min(math.ceil((1.0 - sparsity) * tiles), tiles)) if tiles > 0 else 0


def _value(number: Any) -> Any:
    """As it came, unless a tensor holds it."""
    return number.item() if isinstance(number, torch.Tensor) and number.numel() == 1 else number


def resolve_top_k(sparsity: float | torch.Tensor | None, top_k: int | None, tiles: int) -> int:
    """k among video key tiles, from exactly one of the two; sparsity may be a 0-dim tensor."""
    if sparsity is not None:
        if top_k is not None:
            refuse("sparsity", "exactly one of sparsity and top_k", "both")
        return top_k_of(_value(sparsity), tiles)
    if top_k is None:
        refuse("sparsity", "exactly one of sparsity and top_k", "neither")
    top_k = _value(top_k)
    whole = isinstance(top_k, numbers.Real) and top_k % 1 == 0
    if not whole or not min(1, tiles) <= top_k <= tiles:
        refuse("top_k", f"1 to {tiles}, the number of video key tiles", repr(top_k))
    return int(top_k)


def mask_words(key_tiles: int) -> int:
    """int64 words of a bitmap row: key_tiles bits rounded up to 16 bytes."""
    return (key_tiles + 127) // 128 * 2
