"""Scratch in memory that has no contents yet."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes


class LentMemory:
    """A tensor that is written last lends its memory to what is dead by then. Pooled tensors,
    scores and lists fit many times in an output, so that they take no memory of their own."""

    def __init__(self, tensor: Tensor, otherwise: Callable[..., Tensor]):
        """`otherwise(*shape, dtype=)` allocates what does not fit, and all if `tensor` has gaps."""
        self.otherwise = otherwise
        self.bytes = tensor.new_empty(0, dtype=torch.uint8)
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        dense = tensor.permute(order)
        if dense.is_contiguous():
            self.bytes = dense.flatten().view(torch.uint8)
        self.used = -self.bytes.storage_offset() % ALIGNMENT

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor."""
        size = dtype.itemsize * math.prod(shape)
        if self.used + size > len(self.bytes):
            return self.otherwise(*shape, dtype=dtype)
        lent = self.bytes[self.used : self.used + size].view(dtype).view(shape)
        self.used += size + -size % ALIGNMENT
        return lent
