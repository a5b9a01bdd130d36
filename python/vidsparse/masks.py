"""Selections as bitmaps, and the other forms masks come in. On any device, without a host sync.

A bitmap is int64 [B, H, Nq, W]: bit j%64 of word j//64 is key tile j, W words rounded up to 16
bytes, tail bits zero.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from .errors import refuse
from .layout import TileLayout, mask_words
from .sequence import integers

Mask: TypeAlias = Tensor | tuple[Tensor, Tensor]  # what `as_bitmap` takes


def from_bool(selected: Tensor) -> Tensor:
    """bool [B, H, Nq, Nk] or [H, Nq, Nk] -> a bitmap (then of one batch entry)."""
    if not isinstance(selected, Tensor):
        refuse("mask", "bool [B, H, Nq, Nk] or [H, Nq, Nk]", type(selected).__name__)
    if selected.ndim == 3:
        selected = selected.unsqueeze(0)
    if selected.ndim != 4 or selected.dtype != torch.bool:
        got = f"{list(selected.shape)} {selected.dtype}"
        refuse("mask", "bool [B, H, Nq, Nk] or [H, Nq, Nk]", got)
    tiles = selected.shape[3]
    padded = torch.nn.functional.pad(selected, (0, mask_words(tiles) * 64 - tiles))
    shifts = torch.arange(8, dtype=torch.uint8, device=selected.device)
    octets = padded.to(torch.uint8).unflatten(-1, (-1, 8)).bitwise_left_shift(shifts)
    return octets.sum(-1, dtype=torch.uint8).view(torch.int64)


def to_bool(mask: Tensor, key_tiles: int) -> Tensor:
    """A bitmap -> bool [B, H, Nq, key_tiles]."""
    if not isinstance(mask, Tensor):
        refuse("mask", "a bitmap [B, H, Nq, W] torch.int64", type(mask).__name__)
    if mask.dtype != torch.int64 or mask.shape[-1:] != (mask_words(key_tiles),):
        expected = f"a bitmap [B, H, Nq, {mask_words(key_tiles)}] torch.int64"
        refuse("mask", expected, f"{list(mask.shape)} {mask.dtype}")
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    octets = mask.contiguous().view(torch.uint8).unsqueeze(-1).bitwise_right_shift(shifts)
    return octets.bitwise_and(1).flatten(-2)[..., :key_tiles].to(torch.bool)


def from_indices(indices: Tensor, counts: Tensor, key_tiles: int) -> Tensor:
    """Lists q2k_idx int [B, H, Nq, M] and q2k_num int [B, H, Nq] -> a bitmap. The first `counts`
    entries of a list count; out-of-range ones are ignored, duplicates count once."""
    if not (isinstance(indices, Tensor) and isinstance(counts, Tensor)):
        got = f"{type(indices).__name__} and {type(counts).__name__}"
        refuse("mask", "indices [B, H, Nq, M] and counts [B, H, Nq]", got)
    if indices.device != counts.device:
        got = f"{indices.device} and {counts.device}"
        refuse("mask", "indices and counts on one device", got)
    if indices.ndim != 4 or counts.shape != indices.shape[:3]:
        got = f"{list(indices.shape)} and {list(counts.shape)}"
        refuse("mask", "indices [B, H, Nq, M] and counts [B, H, Nq]", got)
    place = torch.arange(indices.shape[3], device=indices.device)
    live = (place < counts.unsqueeze(-1)) & (indices >= 0) & (indices < key_tiles)
    # Column key_tiles takes the dead entries and is cut off.
    target = torch.where(live, indices, key_tiles).long()
    selected = torch.zeros(
        (*indices.shape[:3], key_tiles + 1), dtype=torch.bool, device=indices.device
    )
    return from_bool(selected.scatter_(3, target, True)[..., :key_tiles])


def to_indices(mask: Tensor, key_tiles: int) -> tuple[Tensor, Tensor]:
    """A bitmap -> int32 lists [B, H, Nq, key_tiles], ascending, unused entries -1, and their
    lengths int32 [B, H, Nq]."""
    return indices_of_bool(to_bool(mask, key_tiles))


def indices_of_bool(selected: Tensor) -> tuple[Tensor, Tensor]:
    """As `to_indices`, from bool [..., Nk]."""
    counts = selected.sum(-1, dtype=torch.int32)
    order = torch.argsort(selected.to(torch.uint8), dim=-1, descending=True, stable=True)
    place = torch.arange(selected.shape[-1], device=selected.device)
    lists = torch.where(place < counts.unsqueeze(-1), order, -1)
    return lists.to(torch.int32), counts


def as_bitmap(mask: Mask, key_tiles: int) -> Tensor:
    """Any form of a mask as a bitmap: bool, (indices, counts), or a bitmap itself, whose tail bits
    are made zero: no kernel may meet a tile that does not exist."""
    if isinstance(mask, tuple) and len(mask) == 2:
        return from_indices(*mask, key_tiles)
    if not isinstance(mask, Tensor):
        got = "None" if mask is None else type(mask).__name__
        refuse("mask", "a bool tensor, a bitmap, or a tuple of two index lists", got)
    if mask.dtype == torch.int64:
        return without_tail(mask, key_tiles)
    if mask.shape[-1:] != (key_tiles,):
        expected = f"bool [B, H, Nq, {key_tiles}] or [H, Nq, {key_tiles}]"
        refuse("mask", expected, f"{list(mask.shape)} {mask.dtype}")
    return from_bool(mask)


def without_tail(mask: Tensor, key_tiles: int) -> Tensor:
    """A bitmap with zero for all bits from key_tiles on."""
    if key_tiles % 128 == 0 or mask.shape[-1:] != (mask_words(key_tiles),):
        return mask
    first = torch.arange(mask.shape[-1], device=mask.device) * 64  # bit of each word
    bits = (key_tiles - first).clamp(0, 64)
    return mask & torch.where(bits == 64, -1, (1 << bits.clamp(max=63)) - 1)


def always_own_tile(layout: TileLayout, device: torch.device | str = "cpu") -> Tensor:
    """Bitmap [1, 1, N, W]: each tile keeps itself. For equal query and key sequences."""
    return from_bool(torch.eye(layout.tiles, dtype=torch.bool, device=device)[None])


def always_window(
    layout: TileLayout, distances: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Bitmap [1, 1, N, W]: video tiles keep those of the same segment within the given distances
    in tiles (t, h, w). For equal query and key sequences."""
    expected = "three numbers of tiles (t, h, w)"
    if len(integers("distances", expected, distances)) != 3:
        refuse("distances", expected, distances)
    selected = torch.zeros((layout.tiles, layout.tiles), dtype=torch.bool)
    for part in layout.parts:
        if part.plain:
            continue
        near = torch.ones((part.tiles, part.tiles), dtype=torch.bool)
        sides = torch.meshgrid(*(torch.arange(n) for n in part.tile_grid), indexing="ij")
        for place, distance in zip(sides, distances, strict=True):
            flat = place.flatten()
            near &= (flat[:, None] - flat).abs() <= distance
        last = part.first_tile + part.tiles
        selected[part.first_tile : last, part.first_tile : last] = near
    return from_bool(selected[None]).to(device)


def always_first_frame(
    query: TileLayout, key: TileLayout, device: torch.device | str = "cpu"
) -> Tensor:
    """Bitmap [1, 1, Nq, W]: every query tile keeps the first tile row in time of every key
    video."""
    first = torch.zeros(key.tiles, dtype=torch.bool)
    for part in key.parts:
        if not part.plain:
            row = part.tile_grid[1] * part.tile_grid[2]
            first[part.first_tile : part.first_tile + min(row, part.tiles)] = True
    return from_bool(first.expand(1, query.tiles, -1)).to(device)
