"""The Video Sparse Attention part of `fastvideo_kernel` 0.3.5, with its conventions: tensors
[B, H, S, D], or [B, S, H, D] where a name says bshd, tokens packed tile after tile.

Inputs go straight to the kernels, without copies. Other than the original: pooled tensors and
scores stay in float32, ties keep exactly topk tiles, pads of outputs and gradients are zero, every
tile of a multiple of 64 tokens works in every function, on every device and for every batch.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
from types import ModuleType

import torch
from torch import Tensor

from ..errors import refuse
from ..functional import block_sparse_attention, video_sparse_attention
from ..prepared import describe
from ..sequence import Packed, Sequence, is_integer, parse_tile
from . import triton_kernels
from .metadata import (
    VSA_TILE_SIZE,
    build_vsa_metadata,
    construct_variable_block_sizes,
    get_non_pad_index,
    get_reverse_tile_partition_indices,
    get_tile_partition_indices,
)

__version__ = "0.3.5"  # whose interface this is

__all__ = [
    "VSA_TILE_SIZE",
    "block_sparse_attn",
    "block_sparse_attn_from_indices",
    "build_vsa_metadata",
    "construct_variable_block_sizes",
    "get_non_pad_index",
    "get_reverse_tile_partition_indices",
    "get_tile_partition_indices",
    "triton_kernels",
    "video_sparse_attn",
    "video_sparse_attn_bshd",
]


def video_sparse_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variable_block_sizes: Tensor,
    q_variable_block_sizes: Tensor,
    topk: int,
    block_size: int | tuple[int, int, int] = 64,
    compress_attn_weight: Tensor | None = None,
) -> Tensor:
    """q [B, H, Sq, D], k and v [B, H, Sk, D], packed; sizes int [tiles]. Without
    `compress_attn_weight` the pooled branch is added ungated. `block_size`: sides of a tile; one
    number is a cube, and both 4 and 64 mean the tile of 64 tokens."""
    weight = compress_attn_weight
    if weight is not None:
        weight = _bshd("compress_attn_weight", weight)
    out = video_sparse_attn_bshd(
        _bshd("q", q), _bshd("k", k), _bshd("v", v), variable_block_sizes, q_variable_block_sizes,
        topk, block_size, weight,
    )  # fmt: skip
    return out.transpose(1, 2)


def video_sparse_attn_bshd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variable_block_sizes: Tensor,
    q_variable_block_sizes: Tensor,
    topk: int,
    block_size: int | tuple[int, int, int] = 64,
    compress_attn_weight: Tensor | None = None,
) -> Tensor:
    """`video_sparse_attn` of [B, S, H, D] tensors."""
    tile = parse_tile(4 if block_size == 64 else block_size)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, tensor, "[B, S, H, D]")
    for name, sizes, tokens in (
        ("variable_block_sizes", variable_block_sizes, k),
        ("q_variable_block_sizes", q_variable_block_sizes, q),
    ):
        _check_sizes(name, sizes, tokens)
        if sizes.numel() * math.prod(tile) != tokens.shape[1]:
            got = f"{sizes.numel()} for {tokens.shape[1]} tokens"
            refuse(name, f"a size for each tile of {math.prod(tile)} tokens", got)
    if not (isinstance(topk, Tensor) or is_integer(topk)) or topk < 1:
        refuse("topk", "a number of tiles >= 1", repr(topk))
    gate = 1.0 if compress_attn_weight is None else compress_attn_weight
    if isinstance(gate, Tensor):
        gate = gate.to(q.dtype)
        try:
            gate = gate.expand(q.shape)
        except RuntimeError:
            expected = f"what broadcasts to q's {list(q.shape)} as [B, S, H, D]"
            refuse("compress_attn_weight", expected, list(gate.shape))
        gate = gate if gate.stride(3) == 1 else gate.contiguous()
    out = video_sparse_attention(
        q, k, v, layout=(q_variable_block_sizes.view(-1), variable_block_sizes.view(-1)),
        tile=tile, top_k=min(topk, variable_block_sizes.numel()), gate=gate,
    )  # fmt: skip
    return out


def block_sparse_attn(
    q: Tensor, k: Tensor, v: Tensor, block_map: Tensor, variable_block_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over block_map, bool [B, H, Nq, Nk] or [H, Nq, Nk]; `variable_block_sizes` are the
    keys', every query slot counts. Returns o [B, H, Sq, D] and M float32 [B, H, Sq], the
    log2-sum-exp2 of the scores times log2(e)."""
    if not isinstance(block_map, Tensor):
        expected = "a tensor [B, H, Nq, Nk] or [H, Nq, Nk]"
        refuse("block_map", expected, type(block_map).__name__)
    return _attend(q, k, v, block_map.to(torch.bool), variable_block_sizes)


def block_sparse_attn_from_indices(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q2k_idx: Tensor,
    q2k_num: Tensor,
    variable_block_sizes: Tensor,
) -> tuple[Tensor, Tensor]:
    """`block_sparse_attn` over lists q2k_idx int [B, H, Nq, M] of the lengths q2k_num
    [B, H, Nq]."""
    return _attend(q, k, v, (q2k_idx, q2k_num), variable_block_sizes)


def _check_sizes(name: str, sizes: Tensor, tokens: Tensor) -> None:
    """What the functions below would refuse by names of their own."""
    expected = f"an integer tensor on {tokens.device}"
    if not isinstance(sizes, Tensor):
        refuse(name, expected, type(sizes).__name__)
    if sizes.is_floating_point() or sizes.device != tokens.device:
        refuse(name, expected, f"{sizes.dtype} on {sizes.device}")


def _check_tensor(name: str, x: Tensor, shape: str) -> None:
    if not isinstance(x, Tensor):
        refuse(name, f"a tensor {shape}", type(x).__name__)
    if x.ndim != 4:
        refuse(name, f"a tensor {shape}", describe(x))


def _attend(q, k, v, mask, sizes):
    q, k, v = _bshd("q", q), _bshd("k", k), _bshd("v", v)
    _check_sizes("variable_block_sizes", sizes, k)
    tiles = sizes.numel()
    slots = k.shape[1] // max(tiles, 1)
    if slots * tiles != k.shape[1] or slots == 0 or slots % 64 != 0:
        expected = "a size for each key tile of a multiple of 64 tokens"
        refuse("variable_block_sizes", expected, f"{tiles} for {k.shape[1]} tokens")
    tile = (4, 4, slots // 16)
    out, lse = block_sparse_attention(
        q, k, v, mask, query=Sequence(Packed(q.shape[1] // slots, slots)),
        key=Sequence(Packed(tiles, slots)), tile=tile, key_lengths=sizes.view(-1),
        return_lse=True,
    )  # fmt: skip
    return out.transpose(1, 2), lse * math.log2(math.e)


def _bshd(name: str, x: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, S, H, D]."""
    _check_tensor(name, x, "[B, H, S, D]")
    return x.transpose(1, 2)


_original: importlib.machinery.ModuleSpec | None = None
_loaded: ModuleType | None = None


def find_original() -> None:
    """Looks for the real package; its submodules can then be imported beside ours."""
    global _original
    _original = importlib.machinery.PathFinder.find_spec("fastvideo_kernel")
    places = list(_original.submodule_search_locations or []) if _original else []
    globals()["__path__"] = places
    triton_kernels.__path__ = [*triton_kernels.OWN_PATH, *(f"{x}/triton_kernels" for x in places)]


def __getattr__(name: str) -> object:
    """Names that are not Video Sparse Attention: the real package's, where it is installed."""
    global _loaded
    installed = sys.modules.get("fastvideo_kernel") is sys.modules[__name__]
    if _original is None or _original.loader is None or not installed or name.startswith("__"):
        raise AttributeError(
            f"vidsparse stands in for fastvideo_kernel and has no {name!r}; the real "
            "fastvideo_kernel, which may have it, is not installed"
        )
    if _loaded is None:
        ours = {key: globals()[key] for key in __all__}
        module = importlib.util.module_from_spec(_original)
        try:
            _original.loader.exec_module(module)
        finally:
            globals().update(ours)  # importing submodules of the same names has bound those
        _loaded = module
    return getattr(_loaded, name)
