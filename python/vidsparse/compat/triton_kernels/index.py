"""Maps and index lists as `fastvideo_kernel.triton_kernels.index` has them, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ...masks import from_indices, indices_of_bool, to_bool


def map_to_index(block_map: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, H, Nq, Nk] -> int32 lists [B, H, Nq, Nk], ascending, unused entries -1, and their
    lengths [B, H, Nq]."""
    return indices_of_bool(block_map.to(torch.bool))


def invert_indices(q2k_idx: Tensor, q2k_num: Tensor, num_kv_blocks: int) -> tuple[Tensor, Tensor]:
    """Lists of keys for each query -> lists of queries for each key, int32 [B, H, Nk, Nq],
    ascending, and their lengths [B, H, Nk]."""
    selected = to_bool(from_indices(q2k_idx, q2k_num, num_kv_blocks), num_kv_blocks)
    return indices_of_bool(selected.transpose(2, 3))


def topk_index_to_map(index: Tensor, num_kv_blocks: int, transpose_map: bool = False) -> Tensor:
    """int [B, H, Nq, topk] -> bool [B, H, Nq, num_kv_blocks]; with `transpose_map` a view whose
    query dimension is contiguous."""
    batch, heads, rows, _ = index.shape
    if transpose_map:
        shape = (batch, heads, num_kv_blocks, rows)
        block_map = torch.zeros(shape, dtype=torch.bool, device=index.device).transpose(2, 3)
    else:
        shape = (batch, heads, rows, num_kv_blocks)
        block_map = torch.zeros(shape, dtype=torch.bool, device=index.device)
    return block_map.scatter_(3, index.long(), True)
