"""How the tokens of one side (query or key) lie in memory: segments, or packed tiles."""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from .errors import refuse

Tile: TypeAlias = tuple[int, int, int]
Ints: TypeAlias = collections.abc.Sequence[int]


@dataclass(frozen=True)
class Plain:
    """Tokens without a grid (text, conditioning, audio), cut into chunks of E tokens of their own,
    the last of which may be short. `length` >= 0 tokens."""

    length: int


@dataclass(frozen=True)
class Video:
    """t x h x w tokens in raster order: token p = (t*H + h)*W + w. Sides may be 0."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class Packed:
    """Tiles stored one after the other, `slots` tokens each, of which the first n_j are valid; the
    n_j come at run time. Pad slots may hold anything, NaN too. `slots` equals the tile's E."""

    tiles: int
    slots: int = 64


Segment: TypeAlias = Plain | Video

_PLAIN, _VIDEO, _PACKED = 0, 1, 2


class Sequence:
    """An ordered list of segments, or packed tiles; immutable and hashable.

        Sequence(Plain(77), Video(21, 30, 52))
        Sequence.grid((21, 30, 52), prefix=(77,))   # the same
        Sequence(Packed(624))
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: Segment | Packed):
        if any(isinstance(part, Packed) for part in parts):
            if len(parts) != 1:
                refuse("sequence", "Packed alone, without other segments", parts)
        else:
            for part in parts:
                if not isinstance(part, (Plain, Video)):
                    refuse("sequence", "Plain, Video or one Packed", repr(part))
        for part in parts:
            if not all(map(is_integer, _code(part))):
                refuse("sequence", "integers", repr(part))
        self._parts = parts

    @staticmethod
    def grid(grid: Ints, prefix: Ints = ()) -> Sequence:
        """Plain segments of the lengths `prefix`, then one video of the sides `grid` (T, H, W)."""
        return Sequence.decode(encode_grid(grid, prefix))

    @property
    def is_packed(self) -> bool:
        return len(self._parts) == 1 and isinstance(self._parts[0], Packed)

    @property
    def packed(self) -> Packed:
        """Only where `is_packed`."""
        part = self._parts[0]
        assert isinstance(part, Packed)
        return part

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Empty when packed."""
        return tuple(part for part in self._parts if not isinstance(part, Packed))

    def encode(self) -> list[int]:
        """Four integers a segment, as torch operators take them: its kind, then its sides."""
        code: list[int] = []
        for part in self._parts:
            code += _code(part)
        return code

    @staticmethod
    def decode(code: Ints) -> Sequence:
        """The inverse of `encode`."""
        parts: list[Segment | Packed] = []
        for i in range(0, len(code), 4):
            kind, a, b, c = code[i : i + 4]
            if kind == _PLAIN:
                parts.append(Plain(a))
            elif kind == _VIDEO:
                parts.append(Video(a, b, c))
            else:
                parts.append(Packed(a, b))
        return Sequence(*parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return f"Sequence({', '.join(map(repr, self._parts))})"

    def __str__(self) -> str:
        """ "Plain(77) + Video(21x30x52)", "Packed(624 x 64)"."""
        if not self._parts:
            return "no segments"
        return " + ".join(
            f"Plain({part.length})"
            if isinstance(part, Plain)
            else f"Video({part.t}x{part.h}x{part.w})"
            if isinstance(part, Video)
            else f"Packed({part.tiles} x {part.slots})"
            for part in self._parts
        )


def _code(part: Segment | Packed) -> tuple[int, int, int, int]:
    """What `Sequence.encode` has for it."""
    if isinstance(part, Plain):
        return _PLAIN, part.length, 0, 0
    if isinstance(part, Video):
        return _VIDEO, part.t, part.h, part.w
    return _PACKED, part.tiles, part.slots, 0


def encode_grid(grid: Ints, prefix: Ints = (), name: str = "grid") -> list[int]:
    """`Sequence.grid(grid, prefix).encode()` without the objects: torch.compile traces this.
    `name`: the caller's for `grid`."""
    sides = integers(name, "three sides (T, H, W)", grid)
    if len(sides) != 3:
        refuse(name, "three sides (T, H, W)", grid)
    code: list[int] = []
    for length in integers("prefix", "lengths of Plain segments", prefix):
        code += (_PLAIN, length, 0, 0)
    code += (_VIDEO, *sides)
    return code


def integers(name: str, expected: str, values: Ints) -> tuple[int, ...]:
    """As a tuple. Integers in tensors are refused: they could change, and a GPU would be waited
    for."""
    if not hasattr(values, "__iter__") or isinstance(values, torch.Tensor):
        refuse(name, expected, repr(values))
    for value in values:
        if not is_integer(value):
            refuse(name, expected, repr(values))
    return tuple(values)


def is_integer(value: object) -> bool:
    if isinstance(value, (int, torch.SymInt)):
        return True
    return hasattr(value, "__index__") and not isinstance(value, torch.Tensor)


def check_integer(name: str, value: Any, least: int) -> None:
    if not is_integer(value) or value < least:
        refuse(name, f"an integer >= {least}", repr(value))


def parse_tile(tile: int | Ints) -> Tile:
    """(a, b, c), the sides of a tile in tokens along time, height and width; one number means a
    cube. Raises ArgumentError unless a*b*c is a positive multiple of 64 below 2^31."""
    sides = (tile,) * 3 if isinstance(tile, int) else integers("tile", "three sides", tile)
    expected = "positive sides whose product is a multiple of 64 and below 2^31"
    if len(sides) != 3:
        refuse("tile", "three sides", tile)
    a, b, c = sides
    if min(sides) <= 0 or (a * b * c) % 64 != 0 or a * b * c >= 2**31:
        refuse("tile", expected, f"{a}x{b}x{c}")
    return a, b, c
