"""The op out of Triton kernels: buffers, grids and arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
import triton
from torch import Tensor

from ..backends import Gate, Kernels, Lengths, Problem, Selection
from ..layout import mask_words
from .attend import attend_kernel
from .coarse import coarse_backward_kernel
from .config import Shape, device_config
from .gradients import key_gradients_kernel, query_gradients_kernel
from .lent import LentMemory
from .lists import lists_kernel
from .pool import pool_kernel
from .prepare import prepare_kernel
from .select import select_kernel
from .tiles import PIECE, Tables, tables_of

LONGEST = 4096  # of a row held whole; longer ones are read again for each step
POOL_WARPS = 1  # sums stay in registers, where more warps would meet four times a tile
PLAIN_WARPS = 8  # of the other kernels that only move memory
UINT16_VALUES = 65536


def search_shape(tiles: int, shape: Shape) -> tuple[int, int]:
    """Rows and tiles of one block of select's search for the k-th score. The latter grow by powers
    of two, each of which is a kernel of its own, to LONGEST, from where one kernel serves all."""
    chunk = min(max(triton.next_power_of_2(tiles), 128), LONGEST)
    return min(shape.rows, max(shape.search // chunk, 1)), chunk


# What CUDA graphs were captured of: they read its tables, and nothing tells how long they live.
_captured: set[TritonKernels] = set()


def _on_its_device(method: Callable) -> Callable:
    """Triton launches on the current device, which may be another one. What a CUDA graph captures
    is kept."""

    def run(self: TritonKernels, *arguments: object, **named: object) -> object:
        if torch.cuda.is_current_stream_capturing():
            _captured.add(self)
        return method(self, *arguments, **named)

    @wraps(method)
    def launch(self: TritonKernels, *arguments: object, **named: object) -> object:
        if self.device.type == "cpu":
            return method(self, *arguments, **named)
        if torch.cuda.current_device() == self.device.index:
            return run(self, *arguments, **named)
        with torch.cuda.device(self.device):
            return run(self, *arguments, **named)

    return launch


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, token and head, in elements. A lone token's, which is not used, may be anything."""
    return x.stride(0), x.stride(1) if x.shape[1] > 1 else x.shape[3], x.stride(2)


class _Lengths:
    """One side's run-time lengths as kernels take them."""

    def __init__(self, lengths: Tensor | None, nothing: Tensor):
        self.given = lengths is not None
        self.tensor = nothing if lengths is None else lengths
        self.stride = 0 if lengths is None or lengths.dim() == 1 else lengths.stride(0)


class TritonKernels(Kernels):
    """Every launch of one problem on one device."""

    backend = "triton"

    def __init__(self, problem: Problem, device: torch.device):
        self.problem = problem
        self.device = device
        self.config = device_config(device, problem.dtype)
        self.detail = f"warps {self.config.attend.warps}, stages {self.config.attend.stages}"
        self.query: Tables = tables_of(problem.query_layout, device)
        self.key: Tables = tables_of(problem.key_layout, device)
        self.group = problem.heads_q // max(problem.heads_kv, 1)
        self.words = mask_words(self.key.tiles) * 2  # int32 halves of a bitmap row
        self.nothing = torch.zeros(1, dtype=torch.int32, device=device)
        self.no_floats = torch.zeros(1, dtype=torch.float32, device=device)
        # float32 products are exact ones; the others have one kind of product only.
        self.precision = "ieee"
        cores = 64
        if device.type != "cpu":
            cores = torch.cuda.get_device_properties(device).multi_processor_count
        self.select_programs = cores * 2

    def _lengths(self, lengths: Lengths) -> tuple[_Lengths, _Lengths]:
        return _Lengths(lengths.query, self.nothing), _Lengths(lengths.key, self.nothing)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    @_on_its_device
    def pool(
        self,
        q: Tensor | None,
        k: Tensor | None,
        v: Tensor | None,
        lengths: Lengths,
        qc: Tensor | None,
        kc: Tensor | None,
        vc: Tensor | None,
    ) -> None:
        p = self.problem
        ql, kl = self._lengths(lengths)
        tiles = (
            self.query.tiles * (q is not None)
            + self.key.tiles * (k is not None)
            + self.key.tiles * (v is not None)
        )
        given = next((x for x in (q, k, v) if x is not None), None)
        if tiles * p.batch * p.heads_q == 0 or given is None:
            return
        inputs = [given if x is None else x for x in (q, k, v)]
        outputs = [self.no_floats if x is None else x for x in (qc, kc, vc)]
        pool_kernel[(tiles * p.heads_q, p.batch)](
            *inputs, *outputs,
            self.query.tokens, self.key.tokens, self.query.facts, self.key.facts,
            ql.tensor, kl.tensor, ql.stride, kl.stride,
            *(stride for x in inputs for stride in _strides(x)),
            self.query.tiles, self.key.tiles, p.heads_q, p.heads_kv,
            q is not None, k is not None, v is not None, ql.given, kl.given,
            self.key.slots, p.head_dim,
            num_warps=POOL_WARPS,
        )  # fmt: skip

    @_on_its_device
    def select(
        self,
        qc: Tensor,
        kc: Tensor,
        vc: Tensor | None,
        lengths: Lengths,
        selection: Selection,
        scale: float,
        mask: Tensor,
        oc: Tensor | None,
        coarse_max: Tensor | None,
        coarse_sum: Tensor | None,
    ) -> None:
        self._select(
            qc, kc, vc, lengths, selection, scale, mask, oc, coarse_max, coarse_sum, self._empty
        )

    def _select(
        self,
        qc: Tensor,
        kc: Tensor,
        vc: Tensor | None,
        lengths: Lengths,
        selection: Selection,
        scale: float,
        mask: Tensor,
        oc: Tensor | None,
        coarse_max: Tensor | None,
        coarse_sum: Tensor | None,
        empty: Callable[..., Tensor],  # makes scratch
    ) -> None:
        p, shape = self.problem, self.config.select
        _, kl = self._lengths(lengths)
        rows, tiles = self.query.tiles, self.key.tiles
        block = shape.rows
        items = p.batch * p.heads_q * triton.cdiv(rows, block)
        if items == 0:
            return
        search_rows, chunk = search_shape(tiles, shape)
        programs = min(items, self.select_programs)
        pitch = triton.cdiv(tiles, 128) * 128
        scratch = empty(programs, block, pitch)
        always = self.nothing
        always_strides = (0, 0)
        if selection.always is not None:
            always = selection.always.view(torch.int32)
            always_strides = (always.stride(0), always.stride(1))
        plain_k = p.key_layout.plain_tiles
        coarse = oc is not None
        select_kernel[(programs,)](
            qc, kc, vc if coarse else kc,
            oc if coarse else self.no_floats,
            coarse_max if coarse else self.no_floats, coarse_sum if coarse else self.no_floats,
            mask.view(torch.int32), always, scratch,
            self.query.facts, self.key.facts, kl.tensor, kl.stride, *always_strides,
            p.batch, p.heads_q, self.group, rows, tiles, pitch, self.words,
            scale, selection.top_k, plain_k, int(selection.prefix_mode == "exempt"),
            coarse, selection.always is not None, kl.given,
            self.config.coarse_precision, p.head_dim,
            block, shape.columns, search_rows, chunk, tiles <= chunk,
            **shape.options,
        )  # fmt: skip

    def _lists(
        self,
        mask: Tensor,
        most: int,
        facts: Tables,
        lengths: _Lengths,
        sound: Tensor | None,
        empty: Callable[..., Tensor],  # makes the lists
    ) -> tuple[Tensor, Tensor, int]:
        """Lists of key tiles by query tile, or with `sound` of query tiles by key tile: items,
        counts and the pitch of items. A row of the mask names at most `most` tiles."""
        p = self.problem
        by_key = sound is not None
        lines = self.key.tiles if by_key else self.query.tiles
        capacity = facts.tiles + facts.pieces if by_key else facts.entries[most]
        capacity = max(capacity, 1)
        values = facts.tiles * facts.slots // PIECE
        kind = torch.uint16 if values <= UINT16_VALUES else torch.int32
        items = empty(p.batch, p.heads_q, lines, capacity, dtype=kind)
        counts = empty(p.batch, p.heads_q, lines, 3, dtype=torch.int32)
        halves = mask.view(torch.int32)
        block = 32
        if lines * p.batch * p.heads_q > 0:
            lists_kernel[(triton.cdiv(lines, block), p.heads_q, p.batch)](
                halves, items, counts, facts.facts, lengths.tensor, lengths.stride,
                self.nothing if sound is None else sound,
                halves.stride(0), halves.stride(1),
                lines, facts.tiles, p.heads_q, self.words, capacity,
                by_key, lengths.given, facts.slots, PIECE, block, 128,
                num_warps=PLAIN_WARPS,
            )  # fmt: skip
        return items, counts, capacity

    @_on_its_device
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Lengths,
        scale: float,
        mask: Tensor,
        gate: Gate,
        oc: Tensor | None,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        self._attend(q, k, v, lengths, scale, mask, self.key.tiles, gate, oc, out, lse)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Lengths,
        scale: float,
        mask: Tensor,
        most: int,
        gate: Gate,
        oc: Tensor | None,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        p, shape = self.problem, self.config.attend
        ql, kl = self._lengths(lengths)
        if self.query.tiles * p.batch * p.heads_q == 0:
            return
        items, counts, capacity = self._lists(mask, most, self.key, kl, None, self._empty)
        weights = gate if isinstance(gate, Tensor) else q
        attend_kernel[(self.query.blocks(shape.rows) * p.heads_q, p.batch)](
            q, k, v, weights, out, self.no_floats if lse is None else lse,
            self.no_floats if oc is None else oc, items, counts,
            self.query.tokens, self.key.tokens, self.query.facts, self.key.facts,
            ql.tensor, kl.tensor, ql.stride, kl.stride,
            *_strides(q), *_strides(k), *_strides(v), *_strides(weights), *_strides(out),
            p.heads_q, self.group, *self.query.turns(shape.rows),
            self.query.tiles, self.key.tiles, capacity, q.shape[1],
            scale, gate if isinstance(gate, float) else 0.0,
            scale < 0, _gate_kind(gate), lse is not None,
            ql.given, kl.given,
            self.key.slots, p.head_dim, shape.rows, shape.columns, PIECE, self.precision,
            **shape.options,
        )  # fmt: skip

    @_on_its_device
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Lengths,
        selection: Selection,
        scale: float,
        gate: Gate,
        out: Tensor,
        lse: Tensor | None,
        mask: Tensor | None,
        oc: Tensor | None,
        coarse_max: Tensor | None,
        coarse_sum: Tensor | None,
    ) -> None:
        p = self.problem
        pooled = gate is not None
        b, h, d = p.batch, p.heads_q, p.head_dim
        lent = LentMemory(out, self._empty)
        qc = lent.empty(b, h, self.query.tiles, d)
        kc = lent.empty(b, p.heads_kv, self.key.tiles, d)
        vc = lent.empty(b, p.heads_kv, self.key.tiles, d) if pooled else None
        if mask is None:
            mask = self._empty(b, h, self.query.tiles, self.words // 2, dtype=torch.int64)
        if pooled and oc is None:
            oc = self._empty(b, h, self.query.tiles, d)
        if pooled and coarse_max is None:
            coarse_max = lent.empty(b, h, self.query.tiles)
        if pooled and coarse_sum is None:
            coarse_sum = lent.empty(b, h, self.query.tiles)
        self.pool(q, k, v if pooled else None, lengths, qc, kc, vc)
        self._select(
            qc, kc, vc, lengths, selection, scale, mask, oc, coarse_max, coarse_sum, lent.empty
        )
        most = self.key.tiles
        if selection.always is None and p.query_layout.plain_tiles == 0:
            most = min(most, selection.top_k + p.key_layout.plain_tiles)
        self._attend(q, k, v, lengths, scale, mask, most, gate, oc, out, lse)

    @_on_its_device
    def backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Lengths,
        scale: float,
        mask: Tensor,
        gate: Gate,
        out: Tensor,
        lse: Tensor,
        oc: Tensor | None,
        coarse_max: Tensor | None,
        coarse_sum: Tensor | None,
        dout: Tensor,
        dlse: Tensor | None,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        dgate: Tensor | None,
    ) -> None:
        p, config = self.problem, self.config
        ql, kl = self._lengths(lengths)
        b, h, g, d = p.batch, p.heads_q, p.heads_kv, p.head_dim
        query, key = self.query, self.key
        coarse = gate is not None
        kind = _gate_kind(gate)
        delta = self._empty(b, h, query.tiles, query.slots)
        norms = self._empty(b, h, query.tiles, query.slots)
        lent = LentMemory(dq, self._empty)
        sound = lent.empty(b, h, query.tiles, dtype=torch.int8)
        d_oc = lent.empty(b, h, query.tiles, d) if coarse else self.no_floats
        weights = gate if isinstance(gate, Tensor) else q
        d_weights = q if dgate is None else dgate
        if query.tiles * b * h > 0:
            prepare_kernel[(query.tiles, h, b)](
                out, dout, weights, d_weights, oc if coarse else self.no_floats, d_oc,
                lse, lse if dlse is None else dlse, delta, norms, sound,
                query.tokens, query.facts, ql.tensor, ql.stride,
                *_strides(out), *_strides(dout), *_strides(weights), *_strides(d_weights),
                h, query.tiles, q.shape[1], gate if isinstance(gate, float) else 0.0,
                kind, dgate is not None, dlse is not None, ql.given, query.slots, d,
                num_warps=PLAIN_WARPS,
            )  # fmt: skip
        dqc = dkc = dvc = self.no_floats
        if coarse:
            dqc, dkc, dvc = self._coarse_backward(
                q, k, v, lengths, scale, oc, d_oc, coarse_max, coarse_sum, lent.empty
            )
        strides = (*_strides(q), *_strides(k), *_strides(v), *_strides(dout))
        if key.tiles * b * g > 0:
            items, counts, capacity = self._lists(mask, query.tiles, query, ql, sound, lent.empty)
            shape = config.key_gradients
            key_gradients_kernel[(key.blocks(shape.rows) * g, b)](
                q, k, v, dout, dk, dv, norms, delta, dkc, dvc, items, counts,
                query.tokens, key.tokens, key.facts, kl.tensor, kl.stride,
                *strides, *_strides(dk), *_strides(dv),
                h, self.group, *key.turns(shape.rows), query.tiles, key.tiles, capacity, scale,
                coarse, kl.given, key.slots, d,
                shape.rows, shape.columns, PIECE, self.precision, **shape.options,
            )  # fmt: skip
        if query.tiles * b * h > 0:
            items, counts, capacity = self._lists(mask, key.tiles, key, kl, None, self._empty)
            shape = config.query_gradients
            query_gradients_kernel[(query.blocks(shape.rows) * h, b)](
                q, k, v, dout, dq, norms, delta, dqc, items, counts,
                query.tokens, key.tokens, query.facts, key.facts,
                ql.tensor, kl.tensor, ql.stride, kl.stride, *strides, *_strides(dq),
                h, self.group, *query.turns(shape.rows), query.tiles, key.tiles, capacity, scale,
                coarse, ql.given, kl.given, key.slots, d,
                shape.rows, shape.columns, PIECE, self.precision, **shape.options,
            )  # fmt: skip

    def _coarse_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Lengths,
        scale: float,
        oc: Tensor | None,
        d_oc: Tensor,
        coarse_max: Tensor | None,
        coarse_sum: Tensor | None,
        empty: Callable[..., Tensor],  # makes what is dead before dq is written
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the pooled tensors, which are pooled again rather than kept."""
        p, shape = self.problem, self.config.coarse
        ql, kl = self._lengths(lengths)
        b, h, g, d = p.batch, p.heads_q, p.heads_kv, p.head_dim
        qc = empty(b, h, self.query.tiles, d)
        kc = empty(b, g, self.key.tiles, d)
        vc = empty(b, g, self.key.tiles, d)
        self.pool(q, k, v, lengths, qc, kc, vc)
        dqc = self._empty(b, h, self.query.tiles, d)
        dkc = empty(b, g, self.key.tiles, d)
        dvc = empty(b, g, self.key.tiles, d)
        blocks = triton.cdiv(self.query.tiles, shape.rows) + triton.cdiv(self.key.tiles, shape.rows)
        if blocks * b * h > 0:
            coarse_backward_kernel[(blocks, h, b)](
                qc, kc, vc, oc, d_oc, coarse_max, coarse_sum, dqc, dkc, dvc,
                self.query.facts, self.key.facts, ql.tensor, kl.tensor, ql.stride, kl.stride,
                h, self.group, self.query.tiles, self.key.tiles, scale,
                ql.given, kl.given, self.config.coarse_precision, d, shape.rows,
                **shape.options,
            )  # fmt: skip
        return dqc, dkc, dvc


def _gate_kind(gate: Gate) -> int:
    if gate is None:
        return 0
    return 2 if isinstance(gate, Tensor) else 1
