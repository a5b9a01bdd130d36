"""Problems for the Triton kernels, called directly, on a GPU or else under Triton's interpreter.

Outputs and pads begin as NaN. Each batch entry is judged alone, by its own tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import judging
import transcription
from vidsparse.backends import Lengths, Problem, Selection
from vidsparse.layout import mask_words
from vidsparse.masks import to_bool
from vidsparse.sequence import Packed, Plain, Sequence, Video
from vidsparse.triton.kernels import TritonKernels

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")

NAN = float("nan")


@dataclass
class Side:
    """Tokens of the queries or of the keys: segments (a length, or T, H, W) or packed tiles, and
    for each batch entry the run-time lengths: n_j of packed tiles, or those of plain segments."""

    segments: list[int | tuple[int, int, int]] = field(default_factory=list)
    packed: int | None = None
    lengths: list[list[int]] | None = None

    def sequence(self, tile: tuple[int, int, int]) -> Sequence:
        if self.packed is not None:
            return Sequence(Packed(self.packed, math.prod(tile)))
        return Sequence(*(Plain(s) if isinstance(s, int) else Video(*s) for s in self.segments))

    def tiles(self, tile: tuple[int, int, int], entry: int) -> tuple[list[list[int]], list[bool]]:
        """Valid tokens of each tile of a batch entry; which tiles are plain."""
        slots = math.prod(tile)
        lengths = self.lengths[entry % len(self.lengths)] if self.lengths else None
        if self.packed is not None:
            sizes = [min(max(n, 0), slots) for n in lengths or [slots] * self.packed]
            return transcription.tiles_of_packed(sizes, slots), [False] * self.packed
        tiles, plain = transcription.tiles_of_segments(self.segments, tile)
        if lengths is None:
            return tiles, plain
        kept, token, index, place = [], 0, 0, 0
        for segment in self.segments:
            count = len(transcription.tiles_of_segments([segment], tile)[0])
            length = math.prod(segment) if isinstance(segment, tuple) else segment
            if isinstance(segment, int):
                length, place = min(max(lengths[place], 0), segment), place + 1
            kept += [[t for t in members if t < token + length]
                     for members in tiles[index : index + count]]  # fmt: skip
            token += segment if isinstance(segment, int) else length
            index += count
        return kept, plain


@dataclass
class Setting:
    """One problem of the op."""

    query: Side
    key: Side | None = None  # None: the same tokens
    tile: tuple[int, int, int] = (4, 4, 4)
    batch: int = 1
    heads: int = 2
    groups: int = 2
    head_dim: int = 64
    gate: str = "tensor"  # or none, number
    scale: float | None = None
    mode: str = "exempt"
    top_k: int = 2
    fused: bool = False  # q, k and v are views of one projection, their gradients too


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, NAN, dtype=dtype, device=DEVICE)


class PoisonedKernels(TritonKernels):
    """Ours with workspace that begins as NaN, or as numbers no index should be."""

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return super()._empty(*shape, dtype=dtype).fill_(NAN if dtype.is_floating_point else 99)


class Run:
    """Inputs of a setting, and what our kernels make of them."""

    def __init__(self, setting: Setting, dtype: torch.dtype):
        s = self.setting = setting
        self.dtype = dtype
        key = self.key = s.key or s.query
        self.problem = Problem(
            s.query.sequence(s.tile), key.sequence(s.tile), s.tile, s.batch, s.heads, s.groups,
            s.head_dim, dtype,
        )  # fmt: skip
        self.kernels = PoisonedKernels(self.problem, DEVICE)
        self.scale = s.head_dim**-0.5 if s.scale is None else s.scale
        layouts = self.problem.query_layout, self.problem.key_layout
        self.q_tiles, self.k_tiles = layouts[0].tiles, layouts[1].tiles
        sq, sk = layouts[0].tokens, layouts[1].tokens
        self.entries = [
            (*s.query.tiles(s.tile, entry), *key.tiles(s.tile, entry)) for entry in range(s.batch)
        ]
        valid_q = [[t for tile in entry[0] for t in tile] for entry in self.entries]
        valid_k = [[t for tile in entry[2] for t in tile] for entry in self.entries]
        self.q, self.gate_tensor, self.dout = (self._tensor(sq, s.heads, valid_q) for _ in range(3))
        self.k, self.v = (self._tensor(sk, s.groups, valid_k) for _ in range(2))
        self.gradients = [torch.full_like(x, NAN) for x in (self.q, self.k, self.v)]
        if s.fused:
            self._fuse(sq)
        self.gate = {"none": None, "number": 0.75, "tensor": self.gate_tensor}[s.gate]
        self.dlse = torch.randn(s.batch, s.heads, sq, device=DEVICE)
        self.lengths = Lengths(self._lengths(s.query), self._lengths(key))
        self.out = poisoned(s.batch, sq, s.heads, s.head_dim, dtype=dtype)
        self.lse = poisoned(s.batch, s.heads, sq)
        self.mask = torch.full(
            (s.batch, s.heads, self.q_tiles, mask_words(self.k_tiles)), -1,
            dtype=torch.int64, device=DEVICE,
        )  # fmt: skip
        pooled = (s.batch, s.heads, self.q_tiles)
        self.coarse = (poisoned(*pooled, s.head_dim), poisoned(*pooled), poisoned(*pooled))
        self.dgate = torch.full_like(self.q, NAN) if s.gate == "tensor" else None

    def _tensor(self, tokens: int, heads: int, valid: list[list[int]]) -> Tensor:
        """Random where tokens are valid, NaN elsewhere."""
        s = self.setting
        x = torch.full((s.batch, tokens, heads, s.head_dim), NAN, dtype=self.dtype)
        for entry, members in enumerate(valid):
            x[entry, members] = torch.randn(len(members), heads, s.head_dim).to(self.dtype)
        return x.to(DEVICE)

    def _fuse(self, tokens: int) -> None:
        s = self.setting
        shape = (s.batch, tokens, 3, s.heads, s.head_dim)
        values = torch.stack((self.q, self.k, self.v), 2)
        self.q, self.k, self.v = values.unbind(2)
        self.gradients = list(torch.full(shape, NAN, dtype=self.dtype, device=DEVICE).unbind(2))

    def _lengths(self, side: Side) -> Tensor | None:
        if side.lengths is None:
            return None
        values = side.lengths[0] if len(side.lengths) == 1 else side.lengths
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    def forward(self, always: Tensor | None = None) -> None:
        s = self.setting
        coarse = self.coarse if self.gate is not None else (None, None, None)
        self.kernels.forward(
            self.q, self.k, self.v, self.lengths, Selection(s.top_k, s.mode, always), self.scale,
            self.gate, self.out, self.lse, self.mask, *coarse,
        )  # fmt: skip

    def backward(self) -> None:
        coarse = self.coarse if self.gate is not None else (None, None, None)
        self.kernels.backward(
            self.q, self.k, self.v, self.lengths, self.scale, self.mask, self.gate, self.out,
            self.lse, *coarse, self.dout, self.dlse, *self.gradients, self.dgate,
        )  # fmt: skip

    def selected(self) -> Tensor:
        """bool [B, H, Nq, Nk], on the CPU; the tail bits of the mask must be zero."""
        bits = to_bool(self.mask.cpu(), self.mask.shape[-1] * 64)
        assert not bits[..., self.k_tiles :].any()
        return bits[..., : self.k_tiles]

    def check_selection(self) -> None:
        """The rule of tau, exact counts, Plain rows, empty tiles."""
        s = self.setting
        selected = self.selected()
        for entry, (q_tiles, q_plain, k_tiles, k_plain) in enumerate(self.entries):
            q, k = (x[entry : entry + 1].cpu().nan_to_num().double() for x in (self.q, self.k))
            scores = transcription.scores_of(q, k, q_tiles, k_tiles, self.scale)
            tau = judging.tau_of(q, k, q_tiles, k_tiles, self.scale)
            full = [len(tile) > 0 for tile in k_tiles]
            chosen = selected[entry : entry + 1]
            for row, plain in enumerate(q_plain):
                if plain:
                    assert (chosen[:, :, row] == torch.tensor(full)).all()
            rows = [row for row, plain in enumerate(q_plain) if not plain]
            candidates, count = full, s.top_k + sum(k_plain)
            if s.mode == "exempt":
                candidates, count = [f and not p for f, p in zip(full, k_plain)], s.top_k
                exempt = torch.tensor([f and p for f, p in zip(full, k_plain)])
                assert (chosen[:, :, rows] & exempt == exempt).all()
                chosen = chosen & ~exempt
            judging.check_selection(
                chosen[:, :, rows], scores[:, :, rows], tau[:, :, rows], candidates, count
            )

    def check(self, backward: bool = True) -> None:
        """out, lse and gradients on the selection that was made."""
        selected = self.selected()
        for entry, (q_tiles, _, k_tiles, _) in enumerate(self.entries):
            self._check_entry(entry, q_tiles, k_tiles, selected[entry : entry + 1], backward)

    def _check_entry(self, entry, q_tiles, k_tiles, selected, backward) -> None:
        one = slice(entry, entry + 1)
        leaves = [x[one].cpu().nan_to_num() for x in (self.q, self.k, self.v)]
        if self.setting.gate == "tensor":
            leaves.append(self.gate_tensor[one].cpu().nan_to_num())
        dout = self.dout[one].cpu().nan_to_num()
        dlse = self.dlse[one].cpu()
        dead = torch.isneginf(self.lse[one].cpu())
        answers = []
        for dtype in (torch.float64, self.dtype):
            copies = [x.clone().requires_grad_() for x in leaves]
            gate = copies[3] if len(copies) == 4 else self.gate
            out, lse = transcription.vsa(
                *copies[:3], q_tiles, k_tiles, selected, gate, self.scale, dtype
            )
            seeds = (dout.to(dtype), dlse.masked_fill(dead, 0.0).to(lse.dtype))
            gradients = torch.autograd.grad((out, lse), copies, seeds) if backward else ()
            answers.append((out, lse, *gradients))
        results = [self.out, self.lse]
        if backward:
            results += self.gradients
        if backward and self.dgate is not None:
            results.append(self.dgate)
        names = ("out", "lse", "dq", "dk", "dv", "dgate")
        for name, result, exact, plain in zip(names, results, *answers):
            kind = torch.float32 if name == "lse" else self.dtype
            judging.check(name, result[one], exact, plain, kind)
