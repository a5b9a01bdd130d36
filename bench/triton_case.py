"""One problem for the Triton benchmarks: its tensors, our kernels and a random selection."""

from __future__ import annotations

import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

from vidsparse.backends import Lengths, Problem, Selection
from vidsparse.layout import mask_words, top_k_of
from vidsparse.sequence import Sequence
from vidsparse.triton.kernels import TritonKernels

DIM = 128
TILE = (4, 4, 4)
PROBLEMS = {  # name -> heads, grid, Plain segments before it
    "33k": (12, (20, 32, 52), ()),
    "wan1.3b-480p": (12, (21, 30, 52), ()),
    "wan14b-720p": (40, (21, 45, 80), ()),
    "123k": (24, (32, 48, 80), ()),
    "hunyuan-720p": (24, (33, 45, 80), ()),
    "h3-5s": (56, (37, 24, 42), (77,)),
    "tiny": (2, (6, 9, 8), (70,)),
}


class Case:
    """q, k, v, gate, dout [1, tokens, heads, 128] on the GPU, and the mask [1, heads, N, words] of
    what our select keeps at `sparsity`."""

    def __init__(self, name: str, sparsity: float, device: str = "cuda", dtype=torch.bfloat16):
        heads, grid, prefix = PROBLEMS[name]
        self.name, self.heads, self.grid, self.sparsity = name, heads, grid, sparsity
        self.sequence = Sequence.grid(grid, prefix)
        self.problem = Problem(self.sequence, self.sequence, TILE, 1, heads, heads, DIM, dtype)
        self.layout = self.problem.query_layout
        self.tokens, self.tiles = self.layout.tokens, self.layout.tiles
        self.kernels = TritonKernels(self.problem, torch.device(device))
        self.top_k = top_k_of(sparsity, self.layout.video_tiles)
        self.scale = DIM**-0.5
        shape = (1, self.tokens, heads, DIM)
        self.q, self.k, self.v, self.gate, self.dout = (
            torch.randn(shape, device=device, dtype=dtype) for _ in range(5)
        )
        self.out = torch.empty_like(self.q)
        self.lse = torch.empty(1, heads, self.tokens, device=device)
        self.mask = torch.empty(
            1, heads, self.tiles, mask_words(self.tiles), dtype=torch.int64, device=device
        )
        self.coarse = (
            torch.empty(1, heads, self.tiles, DIM, device=device),
            torch.empty(1, heads, self.tiles, device=device),
            torch.empty(1, heads, self.tiles, device=device),
        )
        self.gradients = [torch.empty_like(self.q) for _ in range(4)]
        self.forward()
        bits = (self.mask[..., None] >> torch.arange(64, device=device)) & 1
        self.map = bits.flatten(-2)[..., : self.tiles].bool()  # [1, heads, N, N]
        self.pairs = int(self.map.sum())

    def forward(self) -> None:
        """The whole op with its gate."""
        selection = Selection(self.top_k)
        self.kernels.forward(
            self.q, self.k, self.v, Lengths(), selection, self.scale, self.gate,
            self.out, self.lse, self.mask, *self.coarse,
        )  # fmt: skip

    def backward(self) -> None:
        """Its gradients, after `forward`."""
        dq, dk, dv, dgate = self.gradients
        self.kernels.backward(
            self.q, self.k, self.v, Lengths(), self.scale, self.mask, self.gate, self.out,
            self.lse, *self.coarse, self.dout, None, dq, dk, dv, dgate,
        )  # fmt: skip

    def attend(self) -> None:
        """The fine stage on the mask, lists made anew each time."""
        capacity = self.tiles if self.layout.plain_tiles else self.top_k
        self.kernels._attend(
            self.q, self.k, self.v, Lengths(), self.scale, self.mask, capacity, None, None,
            self.out, self.lse,
        )  # fmt: skip

    def attend_backward(self) -> None:
        """Gradients of the fine stage, after `attend`."""
        dq, dk, dv, _ = self.gradients
        self.kernels.backward(
            self.q, self.k, self.v, Lengths(), self.scale, self.mask, None, self.out,
            self.lse, None, None, None, self.dout, None, dq, dk, dv, None,
        )  # fmt: skip

    def teraflops(self, milliseconds: float, backward: bool = False) -> float:
        """TFLOP/s over the selected pairs of full tiles, 2.5 times the work backward."""
        return 4 * 64 * 64 * DIM * self.pairs * (2.5 if backward else 1) / milliseconds / 1e9


class Stopwatch:
    """Median milliseconds of calls that take turns, every other round backwards; caches cold."""

    def __init__(self, device: torch.device):
        self.gpu = device.type != "cpu"
        if self.gpu:  # more than any L2 holds
            self.flush = torch.empty(64 * 2**20, dtype=torch.int32, device=device)

    def turn(self, call: Callable[[], object], least: float = 15.0) -> list[float]:
        """As many calls as fill `least` milliseconds, queued at once: the host is ahead of them."""
        if not self.gpu:
            start = time.perf_counter()
            call()
            return [(time.perf_counter() - start) * 1e3]
        events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        count = 2
        while len(events) < count:
            self.flush.zero_()
            events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
            events[-1][0].record()
            call()
            events[-1][1].record()
            if len(events) == 1:
                events[0][1].synchronize()
                count = 1 + round(least / max(events[0][0].elapsed_time(events[0][1]), 0.1))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events[1:] or events]

    def in_turns(self, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        for turn in range(rounds):
            for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
                times[name] += self.turn(calls[name])
        return {name: statistics.median(values) for name, values in times.items()}
