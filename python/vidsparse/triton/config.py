"""Warps, pipeline stages and block sizes of every kernel: a table by architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton


@dataclass(frozen=True)
class Shape:
    """How one kernel is launched."""

    warps: int
    stages: int
    rows: int = 64  # tokens (or pooled tiles) of the side that a program owns; divides 64
    columns: int = 64  # of the side that it walks, in a step; divides 64
    registers: int | None = None  # of a thread at most, so that more programs run at once
    search: int = 4096  # scores that one step of select's search holds in registers

    @property
    def options(self) -> dict[str, int]:
        """Launch arguments."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


@dataclass(frozen=True)
class Config:
    """One architecture's kernels."""

    attend: Shape
    key_gradients: Shape
    query_gradients: Shape
    select: Shape  # rows: query tiles of a block of scores
    coarse: Shape  # the pooled branch's backward; rows: of a block of pooled vectors
    coarse_precision: str  # of fp32 products: three TF32 ones where tensor cores have them


# A program's registers and shared memory decide how many run at once on a multiprocessor, which is
# what hides latency here: no program overlaps its own products with its softmax. Ada and consumer
# Blackwell have 100 KB of shared memory (99 for one program), the A100 164 and the H100 228.
# A stage of 64 keys and values of 128 dimensions is 32 KB in bf16.
TABLE = {
    "sm80": Config(
        attend=Shape(4, 3, columns=32),
        key_gradients=Shape(4, 2, columns=32),
        query_gradients=Shape(4, 2, columns=32),
        select=Shape(8, 1, 16),
        coarse=Shape(8, 1, 16),
        coarse_precision="tf32x3",
    ),
    "sm89": Config(  # two programs each of attend and of both gradients
        attend=Shape(4, 2, columns=32),
        key_gradients=Shape(4, 2, columns=16),
        # (NVIDIA's compiler, left alone, spills two words of this one for a fourth program.)
        query_gradients=Shape(4, 2, columns=16, registers=168),
        select=Shape(8, 1, 16),
        coarse=Shape(8, 1, 16),
        coarse_precision="tf32x3",
    ),
    "sm90": Config(
        attend=Shape(4, 3),
        key_gradients=Shape(4, 2),
        query_gradients=Shape(4, 2),
        select=Shape(4, 1, 32, search=8192),
        coarse=Shape(4, 1, 32),
        coarse_precision="tf32x3",
    ),
    "gfx": Config(
        attend=Shape(4, 1, columns=32),
        key_gradients=Shape(8, 1, columns=32),
        query_gradients=Shape(8, 1, columns=32),
        select=Shape(8, 1, 16, 16, search=2048),
        coarse=Shape(8, 1, 16),
        coarse_precision="ieee",
    ),
}


def family(backend: str, arch: int | str) -> str:
    """The row of the table for a compile target."""
    if backend == "hip":
        return "gfx"
    if arch in (90, 100, 103):
        return "sm90"
    return "sm80" if arch == 80 else "sm89"


def config_for(backend: str, arch: int | str, dtype: torch.dtype) -> Config:
    """The table's row; float32 tiles are twice as large and multiplied without tensor cores."""
    row = TABLE[family(backend, arch)]
    if dtype != torch.float32:
        return row
    # Left alone, NVIDIA's compiler spills two words to run more programs of these at once.
    limit = None if backend == "hip" else 128
    return replace(
        row,
        attend=Shape(8, 1, 32, 16, registers=limit),
        key_gradients=Shape(8, 1, 32, 16, registers=limit),
        query_gradients=Shape(8, 1, 16, 16, registers=limit),
    )


@lru_cache(maxsize=16)
def device_config(device: torch.device, dtype: torch.dtype) -> Config:
    """The configuration of the machine's accelerator (the interpreter runs sm80's)."""
    if device.type == "cpu":
        return config_for("cuda", 80, dtype)
    with torch.cuda.device(device):
        target = triton.runtime.driver.active.get_current_target()
    return config_for(target.backend, target.arch, dtype)
