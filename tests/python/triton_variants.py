"""Prints how many kernels a change of the numbers in a problem would compile: 0 each. A program of
its own, for it puts a stand-in for a GPU's driver into Triton and compiles nothing."""

from __future__ import annotations

import torch
from triton import runtime
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vidsparse.backends import Lengths, Problem, Selection
from vidsparse.layout import mask_words
from vidsparse.sequence import Plain, Sequence, Video
from vidsparse.triton.kernels import TritonKernels

variants: set[tuple[str, str]] = set()


class Driver:
    """Of an H100 that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch(self, *arguments, grid, warmup, **options):
    """Binds and specialises, as Triton does, and stops there."""
    return original(self, *arguments, grid=grid, warmup=True, **options)


def note(self, key, *_rest):
    variants.add((self.fn.__name__, str(key)))
    return object()


def run(grid, prefix, batch, heads, top_k):
    """Forward and backward of the op with a gate."""
    sequence = Sequence(Plain(prefix), Video(*grid))
    problem = Problem(sequence, sequence, (4, 4, 4), batch, heads, heads, 64, torch.bfloat16)
    kernels = TritonKernels(problem, torch.device("cpu"))
    layout = problem.query_layout
    q, k, v, gate, out, dout, dq, dk, dv, dgate = (
        torch.empty(batch, layout.tokens, heads, 64, dtype=torch.bfloat16) for _ in range(10)
    )
    lse = torch.empty(batch, heads, layout.tokens)
    mask = torch.empty(batch, heads, layout.tiles, mask_words(layout.tiles), dtype=torch.int64)
    oc = torch.empty(batch, heads, layout.tiles, 64)
    top, total = (torch.empty(batch, heads, layout.tiles) for _ in range(2))
    kernels.forward(q, k, v, Lengths(), Selection(top_k), 0.125, gate, out, lse, mask, oc, top,
                    total)  # fmt: skip
    kernels.backward(q, k, v, Lengths(), 0.125, mask, gate, out, lse, oc, top, total, dout, None,
                     dq, dk, dv, dgate)  # fmt: skip


original = JITFunction.run
JITFunction.run = launch
JITFunction._do_compile = note
runtime.driver.set_active(Driver())
run((4, 8, 32), 5, 1, 2, 3)
first = len(variants)
for change in (
    ((4, 8, 32), 5, 1, 2, 1),
    ((4, 8, 32), 5, 1, 2, 16),
    ((4, 8, 32), 5, 3, 2, 3),
    ((4, 8, 32), 5, 1, 16, 3),
    ((4, 8, 32), 5, 16, 1, 3),
    ((9, 13, 21), 70, 1, 2, 3),
    ((1, 1, 1), 0, 1, 1, 1),
):
    run(*change)
    print(len(variants) - first)
    first = len(variants)
run((16, 32, 32), 0, 1, 1, 3)  # 256 tiles, the next power of two
print(len(variants) - first)
