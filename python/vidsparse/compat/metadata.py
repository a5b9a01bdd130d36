"""Index tensors between raster order and the packed layout, as `fastvideo_kernel` names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..layout import TileLayout, layout_of
from ..sequence import Sequence, Tile, encode_grid, parse_tile

VSA_TILE_SIZE = (4, 4, 4)


def _layout(dit_seq_shape: Tile, tile_size: Tile) -> TileLayout:
    sequence = Sequence.decode(encode_grid(dit_seq_shape, (), "dit_seq_shape"))
    return layout_of(sequence, parse_tile(tile_size))


def _kept(
    make: Callable[[TileLayout, torch.device], Tensor],
) -> Callable[[TileLayout, torch.device | str], Tensor]:
    """`make`, once for each layout and device: hosts ask in every step."""
    cached = lru_cache(maxsize=256)(make)

    def kept(layout: TileLayout, device: torch.device | str) -> Tensor:
        where = torch.empty(0, device=device).device  # "cuda" with its index
        if _get_current_dispatch_mode() is not None:  # its tensors, fake ones say, end with it
            return make(layout, where)
        with torch.inference_mode(False):  # for training too
            return cached(layout, where)

    return kept


@_kept
def _slot_tokens(layout: TileLayout, device: torch.device) -> Tensor:
    return layout.slot_tokens().to(device)


@_kept
def _partition(layout: TileLayout, device: torch.device) -> Tensor:
    table = _slot_tokens(layout, "cpu")
    return table[table >= 0].to(device)


@_kept
def _reverse(layout: TileLayout, device: torch.device) -> Tensor:
    tokens = _partition(layout, "cpu")
    places = torch.empty_like(tokens)
    places[tokens] = torch.arange(tokens.numel(), device="cpu")
    return places.to(device)


@_kept
def _sizes(layout: TileLayout, device: torch.device) -> Tensor:
    return (_slot_tokens(layout, "cpu") >= 0).sum(1, dtype=torch.int32).to(device)


@_kept
def _non_pad(layout: TileLayout, device: torch.device) -> Tensor:
    return get_non_pad_index(_sizes(layout, "cpu"), layout.slots).to(device)


def get_tile_partition_indices(
    dit_seq_shape: Tile, tile_size: Tile, device: torch.device | str
) -> Tensor:
    """int64 [T*H*W]: the raster token of each place in tile order, pads left out."""
    return _partition(_layout(dit_seq_shape, tile_size), device)


def get_reverse_tile_partition_indices(
    dit_seq_shape: Tile, tile_size: Tile, device: torch.device | str
) -> Tensor:
    """int64 [T*H*W]: the place in tile order of each raster token."""
    return _reverse(_layout(dit_seq_shape, tile_size), device)


def construct_variable_block_sizes(
    dit_seq_shape: Tile,
    num_tiles: Tile,
    device: torch.device | str,
    tile_size: Tile = VSA_TILE_SIZE,
) -> Tensor:
    """int32 [tiles]: valid tokens of each tile. `num_tiles` follows from the other two."""
    return _sizes(_layout(dit_seq_shape, tile_size), device)


def get_non_pad_index(variable_block_sizes: Tensor, max_block_size: int) -> Tensor:
    """int64: the slots of the packed layout that hold tokens, ascending."""
    slots = torch.arange(max_block_size, device=variable_block_sizes.device)
    return (slots < variable_block_sizes[:, None]).flatten().nonzero().flatten()


def build_vsa_metadata(
    dit_seq_shape: Tile,
    tile_size: Tile = VSA_TILE_SIZE,
    device: torch.device | str = "cuda",
) -> dict[str, Tensor | Tile | int]:
    """All of the above for a video of `dit_seq_shape` (T, H, W) tokens. Further calls get the same
    tensors."""
    layout = _layout(dit_seq_shape, tile_size)
    return {
        "tile_partition_indices": _partition(layout, device),
        "reverse_tile_partition_indices": _reverse(layout, device),
        "variable_block_sizes": _sizes(layout, device),
        "non_pad_index": _non_pad(layout, device),
        "num_tiles": layout.parts[0].tile_grid,
        "max_block_size": layout.slots,
    }
