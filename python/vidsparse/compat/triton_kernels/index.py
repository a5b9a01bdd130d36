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
    query dimension is contiguous. Entries that are no tile choose none."""
    # Column num_kv_blocks takes those and is cut off.
    target = torch.where((index >= 0) & (index < num_kv_blocks), index, num_kv_blocks).long()
    block_map = torch.zeros(
        (*index.shape[:3], num_kv_blocks + 1), dtype=torch.bool, device=index.device
    ).scatter_(3, target, True)[..., :num_kv_blocks]
    if transpose_map:
        return block_map.transpose(2, 3).contiguous().transpose(2, 3)
    return block_map.contiguous()
