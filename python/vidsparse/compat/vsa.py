"""The older package `vsa`: queries and keys share their block sizes."""

from __future__ import annotations

from torch import Tensor

from . import fastvideo_kernel

__all__ = ["video_sparse_attn"]


def video_sparse_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variable_block_sizes: Tensor,
    topk: int,
    block_size: int | tuple[int, int, int] = 64,
    compress_attn_weight: Tensor | None = None,
) -> Tensor:
    """`fastvideo_kernel.video_sparse_attn` with one tensor of sizes for queries and keys."""
    return fastvideo_kernel.video_sparse_attn(
        q, k, v, variable_block_sizes, variable_block_sizes, topk, block_size,
        compress_attn_weight,
    )  # fmt: skip
