"""Index tensors between raster order and the packed layout, as `fastvideo_kernel` names them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..layout import TileLayout, layout_of
from ..sequence import Sequence, Tile, parse_tile

VSA_TILE_SIZE = (4, 4, 4)


def _layout(dit_seq_shape: Tile, tile_size: Tile) -> TileLayout:
    return layout_of(Sequence.grid(tuple(dit_seq_shape)), parse_tile(tuple(tile_size)))


@lru_cache(maxsize=64)
def _kept_slot_tokens(layout: TileLayout) -> Tensor:
    return layout.slot_tokens()


def _slot_tokens(layout: TileLayout) -> Tensor:
    if _get_current_dispatch_mode() is not None:  # its tensors, fake ones say, must not outlive it
        return layout.slot_tokens()
    return _kept_slot_tokens(layout)


def get_tile_partition_indices(
    dit_seq_shape: Tile, tile_size: Tile, device: torch.device | str
) -> Tensor:
    """int64 [T*H*W]: the raster token of each place in tile order, pads left out."""
    table = _slot_tokens(_layout(dit_seq_shape, tile_size))
    return table[table >= 0].to(device)


def get_reverse_tile_partition_indices(
    dit_seq_shape: Tile, tile_size: Tile, device: torch.device | str
) -> Tensor:
    """int64 [T*H*W]: the place in tile order of each raster token."""
    return torch.argsort(get_tile_partition_indices(dit_seq_shape, tile_size, "cpu")).to(device)


def construct_variable_block_sizes(
    dit_seq_shape: Tile,
    num_tiles: Tile,
    device: torch.device | str,
    tile_size: Tile = VSA_TILE_SIZE,
) -> Tensor:
    """int32 [tiles]: valid tokens of each tile. `num_tiles` follows from the other two."""
    table = _slot_tokens(_layout(dit_seq_shape, tile_size))
    return (table >= 0).sum(1, dtype=torch.int32).to(device)


def get_non_pad_index(variable_block_sizes: Tensor, max_block_size: int) -> Tensor:
    """int64: the slots of the packed layout that hold tokens, ascending."""
    slots = torch.arange(max_block_size, device=variable_block_sizes.device)
    return (slots < variable_block_sizes[:, None]).flatten().nonzero().flatten()


def build_vsa_metadata(
    dit_seq_shape: Tile,
    tile_size: Tile = VSA_TILE_SIZE,
    device: torch.device | str = "cuda",
) -> dict[str, Tensor | Tile | int]:
    """All of the above for a video of `dit_seq_shape` (T, H, W) tokens."""
    (t, h, w), (a, b, c) = dit_seq_shape, tile_size
    num_tiles = (-(-t // a), -(-h // b), -(-w // c))
    sizes = construct_variable_block_sizes(dit_seq_shape, num_tiles, "cpu", tile_size)
    slots = math.prod(tile_size)
    return {
        "tile_partition_indices": get_tile_partition_indices(dit_seq_shape, tile_size, device),
        "reverse_tile_partition_indices": get_reverse_tile_partition_indices(
            dit_seq_shape, tile_size, device
        ),
        "variable_block_sizes": sizes.to(device),
        "non_pad_index": get_non_pad_index(sizes, slots).to(device),
        "num_tiles": num_tiles,
        "max_block_size": slots,
    }
