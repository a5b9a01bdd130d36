"""Problems bound to kernels, made once for each combination of shapes and kept."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .backends import Kernels, Lengths, PrefixMode, Problem, Selection, choose
from .errors import refuse
from .layout import mask_words, resolve_top_k
from .sequence import Ints, Sequence, parse_tile

T = TypeVar("T")
LENGTHS = "query_lengths", "key_lengths"  # as most callers name them


class Shape(NamedTuple):
    """What the tokens look like apart from the tensors; hashable.

    Sequences are encoded (sequence.py): a traced call may hold symbolic integers.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    tile: tuple[int, ...]


class Prepared:
    """A problem with its kernels and the shapes of its results. B, H, G, D, Nq, Nk, W as in
    backends.py."""

    def __init__(self, problem: Problem, device: torch.device, kernels: Kernels):
        self.problem = problem
        self.device = device
        self.kernels = kernels
        query, key = problem.query_layout, problem.key_layout
        batch, heads = problem.batch, problem.heads_q
        self.video_tiles = key.video_tiles  # N_v: what top_k counts
        self.query_shape = torch.Size((batch, query.tokens, heads, problem.head_dim))
        self.key_shape = torch.Size((batch, key.tokens, problem.heads_kv, problem.head_dim))
        self.query_pooled = (batch, heads, query.tiles, problem.head_dim)
        self.key_pooled = (batch, problem.heads_kv, key.tiles, problem.head_dim)
        self.tile_rows = (batch, heads, query.tiles)
        self.token_rows = (batch, heads, query.tokens)
        self.mask = (batch, heads, query.tiles, mask_words(key.tiles))
        self.query_columns = query.length_columns
        self.key_columns = key.length_columns
        self.accumulator = problem.accumulator
        self.scale = problem.head_dim**-0.5

    def check_lengths(
        self, query: Tensor | None, key: Tensor | None, names: tuple[str, str] = LENGTHS
    ) -> Lengths:
        """Run-time lengths: int32 [columns] or [B, columns] of each side, on the device. `names`:
        the caller's for the two."""
        if query is None and key is None:
            return Lengths()
        return Lengths(
            self._side_lengths(names[0], query, self.query_columns),
            self._side_lengths(names[1], key, self.key_columns),
        )

    def _side_lengths(self, name: str, lengths: Tensor | None, columns: int) -> Tensor | None:
        if lengths is None:
            return None
        expected = ((columns,), (self.problem.batch, columns))
        if lengths.shape not in expected or lengths.is_floating_point():
            refuse(name, f"int32 [{columns}] or [B, {columns}]", describe(lengths))
        self.check_device(name, lengths)
        return lengths.to(torch.int32).contiguous()

    def selection(
        self,
        sparsity: float | Tensor | None,
        top_k: int | None,
        compete: bool,
        always: Tensor | None,
    ) -> Selection:
        """With k resolved, from exactly one of sparsity and top_k."""
        mode: PrefixMode = "compete" if compete else "exempt"
        checked = None if always is None else self.check_mask("always", always)
        return Selection(resolve_top_k(sparsity, top_k, self.video_tiles), mode, checked)

    def check_gate(self, gate: Tensor) -> None:
        if gate.shape != self.query_shape or gate.dtype != self.problem.dtype:
            expected = f"q's {list(self.query_shape)} {self.problem.dtype}"
            refuse("gate", expected, describe(gate))
        self.check_device("gate", gate)
        if gate.stride(3) != 1 and gate.shape[3] > 1:
            refuse("gate", "a contiguous head_dim", f"strides {gate.stride()}")

    def check_mask(self, name: str, mask: Tensor) -> Tensor:
        """A bitmap int64 [B, H, Nq, W], where B and H may be 1, expanded to the problem's."""
        batch, heads, rows, words = self.mask
        fits = mask.ndim == 4 and mask.shape[2:] == (rows, words) and mask.dtype == torch.int64
        if not fits or mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, heads):
            refuse(name, f"a bitmap {list(self.mask)} torch.int64", describe(mask))
        self.check_device(name, mask)
        if mask.stride(3) != 1 or mask.stride(2) != words:
            mask = mask.contiguous()
        return mask if mask.shape == self.mask else mask.expand(self.mask)

    def check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            refuse(name, f"a tensor on {self.device}", f"one on {tensor.device}")


def describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


class Memory(Generic[T]):
    """A cache of at least CAPACITY entries, those used last, and at most twice as many: entries pin
    plans, and tables on the device. A hit costs no reordering: what is still in use when `recent`
    is full comes over from `older` one by one."""

    CAPACITY = 128

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.recent: dict[tuple, T] = {}
        self.older: dict[tuple, T] = {}

    def __len__(self) -> int:
        return len(self.recent.keys() | self.older.keys())

    def get(self, key: tuple) -> T | None:
        found = self.recent.get(key)
        if found is None and key in self.older:
            found = self.older.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: tuple, value: T) -> T:
        """Returns the value."""
        if len(self.recent) >= self.CAPACITY:
            self.older, self.recent = self.recent, {}
        self.recent[key] = value
        return value


_by_sizes = Memory[Prepared]()
_by_tensors = Memory[Prepared]()


def surroundings(on_gpu: bool) -> Hashable:
    """What a choice depends on besides the call. Looked up in each: changes count."""
    forced = os.environ.get("VIDSPARSE_BACKEND")
    if on_gpu:
        return forced
    return forced, os.environ.get("VIDSPARSE_CPU_ISA"), torch.get_num_threads()


def prepare_sizes(
    shape: Shape,
    batch: int,
    heads_q: int,
    heads_kv: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: str | None,
) -> Prepared:
    """The Prepared of these, from the cache or made. Raises ArgumentError or UnsupportedError."""
    sizes = (batch, heads_q, heads_kv, head_dim)
    around = surroundings(device.type != "cpu")
    key = (shape, sizes, dtype, device, backend, around)
    found = _by_sizes.get(key)
    if found is not None:
        return found
    if heads_kv == 0 or heads_q % heads_kv != 0:
        refuse("k", f"heads that divide q's {heads_q}", heads_kv)
    if not dtype.is_floating_point:
        refuse("q", "a floating dtype", dtype)
    sequences = Sequence.decode(shape.query), Sequence.decode(shape.key)
    problem = Problem(*sequences, parse_tile(shape.tile), *sizes, dtype)
    kernels = choose(problem, device, backend).prepare(problem, device)
    return _by_sizes.put(key, Prepared(problem, device, kernels))


def prepare(shape: Shape, q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Prepared:
    """For tensors q [B, Sq, H, D] and k, v [B, Sk, G, D], checked against one another and against
    the sequences."""
    device = q.device
    key = (
        shape, q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, device, k.device, v.device,
        backend, surroundings(q.is_cuda),
    )  # fmt: skip
    found = _by_tensors.get(key)
    if found is None:
        found = _by_tensors.put(key, _checked(shape, q, k, v, backend))
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1 and q.shape[3] > 1:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if tensor.stride(3) != 1:
                refuse(name, "a contiguous head_dim", f"strides {tensor.stride()}")
    return found


def _checked(shape: Shape, q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Prepared:
    for name, tensor in (("q", q), ("k", k)):
        if tensor.ndim != 4:
            refuse(name, "[batch, tokens, heads, head_dim]", describe(tensor))
    batch, _, heads, head_dim = q.shape
    found = prepare_sizes(shape, batch, heads, k.shape[2], head_dim, q.dtype, q.device, backend)
    problem = found.problem
    if q.shape != found.query_shape:
        tokens = f"{found.query_shape[1]} tokens, as {problem.query} has"
        refuse("q", tokens, f"{q.shape[1]} in {describe(q)}")
    if k.shape != found.key_shape:
        refuse("k", f"{list(found.key_shape)} for {problem.key}", describe(k))
    if v.shape != found.key_shape:
        refuse("v", f"{list(found.key_shape)}, k's shape", describe(v))
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype or tensor.device != q.device:
            expected = f"{q.dtype} on {q.device}, as q is"
            refuse(name, expected, f"{tensor.dtype} on {tensor.device}")
    return found


def count_tokens(code: Ints, tile: Ints) -> tuple[int, int, int, int]:
    """Tokens, tiles, video tiles and length columns of an encoded sequence; works on symbolic
    integers, for tracing."""
    slots = tile[0] * tile[1] * tile[2]
    tokens, tiles, plain_tiles, segments = 0, 0, 0, 0
    for i in range(0, len(code), 4):
        kind, a, b, c = code[i : i + 4]
        if kind == 0:
            tokens, segments = tokens + a, segments + 1
            plain_tiles += -(-a // slots)
            tiles += -(-a // slots)
        elif kind == 1:
            tokens += a * b * c
            tiles += -(-a // tile[0]) * -(-b // tile[1]) * -(-c // tile[2])
        else:
            return a * b, a, a, a
    return tokens, tiles, tiles - plain_tiles, segments
