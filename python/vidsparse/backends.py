"""What a backend is, the ordered list of them, and the choice of one for a problem.

A backend answers `can_run`, and prepares `Kernels` for a `Problem`: every choice and size is made
there, and the calls only run. Arguments arrive validated, outputs allocated (and uninitialised); a
call writes them whole. On a GPU it does not synchronise, and allocates scratch from torch's caching
allocator only.

Letters in the shapes: B batch, H query heads, G key/value heads (query head h reads key head
h // (H // G)), Sq and Sk tokens (pad slots included), Nq and Nk tiles, D head_dim, W words of a
bitmap row (layout.mask_words(Nk)). "acc" is float32, or float64 where the problem's dtype is
float64. Token tensors have any strides, but head_dim is contiguous; pooled tensors, oc, coarse rows
and lse are dense. Bitmaps are int64 [B, H, Nq, W], bit j%64 of word j//64 for key tile j, tail bits
zero, dense in the last two dimensions; those that are read may have stride 0 over B and H.
The semantics of every tensor, pads and empty tiles included, are docs/numerics.md.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .errors import UnsupportedError, refuse
from .layout import TileLayout, layout_of, mask_words
from .sequence import Sequence, Tile

Gate: TypeAlias = Tensor | float | None  # tensor: [B, Sq, H, D] in the problem's dtype
PrefixMode: TypeAlias = Literal["exempt", "compete"]
# What a forward gives besides out: lse, mask, oc, coarse_max, coarse_sum; None where not wanted.
Kept: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Results: TypeAlias = tuple[  # out and Kept
    Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]
# A forward of which all but q, k, v and a gate tensor is fixed.
Forward: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Results]


class Verdict(NamedTuple):
    """The answer to "can this run here?"; a refusal always has its reason."""

    ok: bool
    reason: str  # why not; when ok, what will be used ("avx512_bf16")


@dataclass(frozen=True)
class Problem:
    """Everything known before the tensors are."""

    query: Sequence
    key: Sequence
    tile: Tile
    batch: int
    heads_q: int
    heads_kv: int  # divides heads_q
    head_dim: int
    dtype: torch.dtype  # of q, k, v, gate and their gradients

    @property
    def query_layout(self) -> TileLayout:
        return layout_of(self.query, self.tile)

    @property
    def key_layout(self) -> TileLayout:
        return layout_of(self.key, self.tile)

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


class Lengths(NamedTuple):
    """Valid lengths known only at run time, int32 on the device, [B, columns] or [columns] (shared
    by the batch), columns = TileLayout.length_columns: n_j of every packed tile, or the length of
    every Plain segment. None: everything is valid. Values are clamped, never trusted, and never
    read by the host."""

    query: Tensor | None = None
    key: Tensor | None = None


class Selection(NamedTuple):
    """Which key tiles a query tile keeps."""

    top_k: int  # in [1, N_v], or 0 where there are no video key tiles
    prefix_mode: PrefixMode = "exempt"
    always: Tensor | None = None  # bitmap OR-ed on top of the k


class Kernels(ABC):
    """One backend prepared for one problem. Immutable, shared by threads."""

    problem: Problem
    backend: str
    detail: str  # what was chosen, e.g. the instruction set

    @abstractmethod
    def pool(
        self,
        q: Tensor | None,  # [B, Sq, H, D]
        k: Tensor | None,  # [B, Sk, G, D]
        v: Tensor | None,  # [B, Sk, G, D]
        lengths: Lengths,
        qc: Tensor | None,  # out: acc [B, H, Nq, D]
        kc: Tensor | None,  # out: acc [B, G, Nk, D]
        vc: Tensor | None,  # out: acc [B, G, Nk, D]
    ) -> None:
        """Means over the valid tokens of each tile. Where an output is None, so is its input."""

    @abstractmethod
    def select(
        self,
        qc: Tensor,  # acc [B, H, Nq, D]
        kc: Tensor,  # acc [B, G, Nk, D]
        vc: Tensor | None,  # acc [B, G, Nk, D]; with oc
        lengths: Lengths,
        selection: Selection,
        scale: float,
        mask: Tensor,  # out: bitmap
        oc: Tensor | None,  # out: acc [B, H, Nq, D]
        coarse_max: Tensor | None,  # out: acc [B, H, Nq]; with oc
        coarse_sum: Tensor | None,  # out: acc [B, H, Nq]; with oc
    ) -> None:
        """Scores, the exact top k and, if wanted, the coarse output."""

    @abstractmethod
    def attend(
        self,
        q: Tensor,  # [B, Sq, H, D]
        k: Tensor,  # [B, Sk, G, D]
        v: Tensor,  # [B, Sk, G, D]
        lengths: Lengths,
        scale: float,
        mask: Tensor,  # bitmap; a bit may name an empty tile
        gate: Gate,
        oc: Tensor | None,  # acc [B, H, Nq, D]; with a gate
        out: Tensor,  # out: [B, Sq, H, D]
        lse: Tensor | None,  # out: acc [B, H, Sq], natural logarithm
    ) -> None:
        """Block-sparse attention over a mask, gate * oc added where there is a gate."""

    def forward(
        self,
        q: Tensor,  # [B, Sq, H, D]
        k: Tensor,  # [B, Sk, G, D]
        v: Tensor,  # [B, Sk, G, D]
        lengths: Lengths,
        selection: Selection,
        scale: float,
        gate: Gate,
        out: Tensor,  # out: [B, Sq, H, D]
        lse: Tensor | None,  # out: acc [B, H, Sq]
        mask: Tensor | None,  # out: bitmap, the selection
        oc: Tensor | None,  # out: acc [B, H, Nq, D]; with a gate only
        coarse_max: Tensor | None,  # out: acc [B, H, Nq]; with a gate only
        coarse_sum: Tensor | None,  # out: acc [B, H, Nq]; with a gate only
    ) -> None:
        """The whole op: pool, select, attend. None outputs are not wanted."""
        raise NotImplementedError

    def forward_keeping(
        self,
        q: Tensor,  # [B, Sq, H, D]
        k: Tensor,  # [B, Sk, G, D]
        v: Tensor,  # [B, Sk, G, D]
        lengths: Lengths,
        selection: Selection,
        scale: float,
        gate: Gate,
        out: Tensor,  # out: [B, Sq, H, D]
        want_lse: bool,
        want_mask: bool,
        want_coarse: bool,  # oc, coarse_max and coarse_sum; with a gate only
    ) -> Kept:
        """`forward`, with what is wanted besides `out` allocated here. A backend has the one or the
        other."""
        rows = q.shape[0], q.shape[2], self.problem.query_layout.tiles
        words = mask_words(self.problem.key_layout.tiles)
        acc = self.problem.accumulator
        kept = (
            q.new_empty((rows[0], rows[1], q.shape[1]), dtype=acc) if want_lse else None,
            q.new_empty((*rows, words), dtype=torch.int64) if want_mask else None,
            q.new_empty((*rows, q.shape[3]), dtype=acc) if want_coarse else None,
            q.new_empty(rows, dtype=acc) if want_coarse else None,
            q.new_empty(rows, dtype=acc) if want_coarse else None,
        )
        self.forward(q, k, v, lengths, selection, scale, gate, out, *kept)
        return kept

    def bind_forward(
        self,
        q: Tensor,  # [B, Sq, H, D]: the calls' has its strides
        selection: Selection,  # without `always`
        scale: float,
        gate_value: float | None,  # where calls have no gate tensor
        want_lse: bool,
        want_mask: bool,
        want_coarse: bool,
    ) -> Forward:
        """`forward_keeping` into an `out` of its own, with q's order in memory and without lengths,
        for calls that recur: what can be done ahead of them is done here."""

        def forward(q, k, v, gate):
            out = torch.empty_like(q)
            any_gate = gate_value if gate is None else gate
            kept = self.forward_keeping(
                q, k, v, Lengths(), selection, scale, any_gate, out, want_lse, want_mask,
                want_coarse,
            )  # fmt: skip
            return out, *kept

        return forward

    @abstractmethod
    def backward(
        self,
        q: Tensor,  # [B, Sq, H, D]
        k: Tensor,  # [B, Sk, G, D]
        v: Tensor,  # [B, Sk, G, D]
        lengths: Lengths,
        scale: float,
        mask: Tensor,  # bitmap
        gate: Gate,
        out: Tensor,  # [B, Sq, H, D], the forward's, gate * oc included
        lse: Tensor,  # acc [B, H, Sq]
        oc: Tensor | None,  # acc [B, H, Nq, D]; with a gate
        coarse_max: Tensor | None,  # acc [B, H, Nq]; with a gate
        coarse_sum: Tensor | None,  # acc [B, H, Nq]; with a gate
        dout: Tensor,  # [B, Sq, H, D]
        dlse: Tensor | None,  # acc [B, H, Sq]
        dq: Tensor,  # out: [B, Sq, H, D], strides of its own (may be views of one fused buffer)
        dk: Tensor,  # out: [B, Sk, G, D]
        dv: Tensor,  # out: [B, Sk, G, D]
        dgate: Tensor | None,  # out: [B, Sq, H, D]; with a tensor gate, if wanted
    ) -> None:
        """Gradients of the whole op, or of block-sparse attention on its own (no gate)."""


class Backend(ABC):
    """A row of the ordered list."""

    name: str
    summary: str  # one line
    on_request: bool = False  # never chosen unless named

    @abstractmethod
    def can_run(self, problem: Problem | None, device: torch.device) -> Verdict:
        """On the machine alone (None), or on a problem."""

    @abstractmethod
    def prepare(self, problem: Problem, device: torch.device) -> Kernels:
        """Only after `can_run` has said yes. Cached by the caller."""


def backend_list() -> list[Backend]:
    """Every backend of this installation, in order of preference."""
    from . import native, triton_backend

    return native.backends() + triton_backend.backends()


def choose(problem: Problem, device: torch.device, backend: str | None) -> Backend:
    """The first backend that can run the problem; `backend`, or else VIDSPARSE_BACKEND, forces one.
    Raises UnsupportedError with every refusal: nothing falls back silently."""
    forced = backend or os.environ.get("VIDSPARSE_BACKEND") or None
    everything = backend_list()
    if forced is not None and forced not in (row.name for row in everything):
        names = ", ".join(row.name for row in everything) or "none (this installation has none)"
        refuse("backend" if backend else "VIDSPARSE_BACKEND", f"one of {names}", forced)
    refusals = []
    for row in everything:
        if row.on_request if forced is None else row.name != forced:
            continue
        verdict = row.can_run(problem, device)
        if verdict.ok:
            return row
        refusals.append(f"{row.name}: {verdict.reason}")
    raise UnsupportedError(
        f"backend: expected one that can run this problem on {device}, got refusals from all "
        f"tried: {'; '.join(refusals) or 'no backend is installed'}"
    )
