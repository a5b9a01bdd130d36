"""The backends of the compiled library: sm90, cpu, reference and what else was built into it."""

from __future__ import annotations

import os
import re
import sys
import weakref
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .backends import (
    Backend,
    Forward,
    Gate,
    Kept,
    Kernels,
    Lengths,
    Problem,
    Selection,
    Verdict,
)
from .errors import ArgumentError, UnsupportedError

_FILE = {"win32": "vidsparse_torch.dll", "darwin": "libvidsparse_torch.dylib"}
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}  # DType
_TEXT = re.compile(r"vidsparse\[(\d+):(\w*)[^\]]*\] (.*)", re.DOTALL)


@lru_cache(maxsize=1)
def library() -> Path | None:
    """Where the compiled library is, loaded; None in a pure-Python installation.
    VIDSPARSE_LIBRARY names another one. One that is there but does not load is an error."""
    default = Path(__file__).parent / _FILE.get(sys.platform, "libvidsparse_torch.so")
    path = Path(os.environ.get("VIDSPARSE_LIBRARY") or default)
    if path == default and not path.exists():
        return None
    torch.ops.load_library(path)
    return path


def _run(index: int | None, operator: torch._ops.OpOverload, handle: int, *args: object) -> Any:
    """An operator of a plan or call, on the current stream of GPU `index`; None: on the CPU."""
    try:
        # torch.cuda.current_stream(), less the object it makes: 0.1 us in place of 3.
        stream = 0 if index is None else torch._C._cuda_getCurrentRawStream(index)
        return operator(handle, stream, *args)
    except RuntimeError as error:
        translate(error)


def _free(operator, handle: int) -> None:
    """An object may die while something is traced, whose graph must not free it once more."""
    with _disable_current_modes():
        operator(handle)


def translate(error: RuntimeError) -> NoReturn:
    """Raises what a library error stands for; any other RuntimeError again."""
    found = _TEXT.search(str(error))
    if found is None:
        raise error
    code, argument, text = int(found[1]), found[2], found[3].split("\nException raised from")[0]
    if code == 1:
        raise ArgumentError(argument, text) from None
    if code == 2:
        raise UnsupportedError(text) from None
    if code == 3:
        raise MemoryError(text) from None
    raise RuntimeError(f"vidsparse: {text}") from None


def _device_code(device: torch.device) -> tuple[int, int]:
    return (0, 0) if device.type == "cpu" else (1, device.index or 0)


def _problem_code(problem: Problem) -> tuple[list[int], list[int], list[int]]:
    sizes = [*problem.tile, problem.batch, problem.heads_q, problem.heads_kv, problem.head_dim]
    return problem.query.encode(), problem.key.encode(), [*sizes, _DTYPES[problem.dtype]]


def rows_of(text: str) -> list[tuple[str, Verdict, bool, str]]:
    """Name, verdict, whether on request only and summary, a row for each line of a list."""
    rows = []
    for line in text.splitlines():
        name, ok, on_request, summary, reason = line.split("\t")
        rows.append((name, Verdict(ok == "1", reason), on_request == "1", summary))
    return rows


class NativeKernels(Kernels):
    """A plan of the library. CUDA calls run on torch's current stream of the plan's device, which
    the library makes current for their duration."""

    def __init__(self, problem: Problem, device: torch.device, backend: str):
        ops = torch.ops.vidsparse_native
        try:
            self._plan = ops.make_plan(*_problem_code(problem), *_device_code(device), backend)
        except RuntimeError as error:
            translate(error)
        weakref.finalize(self, _free, ops.free_plan, self._plan)
        self.problem = problem
        self.backend = backend
        self.detail = ops.plan_detail(self._plan)
        self._index = None if device.type == "cpu" else _device_code(device)[1]

    def _run(self, operator: torch._ops.OpOverload, *args: object) -> Any:
        return _run(self._index, operator, self._plan, *args)

    def pool(self, q, k, v, lengths: Lengths, qc, kc, vc) -> None:
        self._run(torch.ops.vidsparse_native.pool.default, q, k, v, *lengths, qc, kc, vc)

    def select(
        self, qc, kc, vc, lengths: Lengths, selection: Selection, scale, mask, oc,
        coarse_max, coarse_sum,
    ) -> None:  # fmt: skip
        self._run(
            torch.ops.vidsparse_native.select.default, qc, kc, vc, *lengths, selection.top_k,
            selection.prefix_mode == "compete", selection.always, scale, mask, oc, coarse_max,
            coarse_sum,
        )  # fmt: skip

    def attend(self, q, k, v, lengths: Lengths, scale, mask, gate: Gate, oc, out, lse) -> None:
        self._run(
            torch.ops.vidsparse_native.attend.default, q, k, v, *lengths, scale, mask,
            *_split(gate), oc, out, lse,
        )  # fmt: skip

    def forward_keeping(
        self, q, k, v, lengths: Lengths, selection: Selection, scale, gate: Gate, out, want_lse,
        want_mask, want_coarse,
    ) -> Kept:  # fmt: skip
        return self._run(
            torch.ops.vidsparse_native.forward.default, q, k, v, *lengths, selection.top_k,
            selection.prefix_mode == "compete", selection.always, scale, *_split(gate), out,
            want_lse, want_mask, want_coarse,
        )  # fmt: skip

    def bind_forward(
        self, q, selection: Selection, scale, gate_value, want_lse, want_mask, want_coarse
    ) -> Forward:
        ops = torch.ops.vidsparse_native
        call = ops.bind_forward(
            self._plan, selection.top_k, selection.prefix_mode == "compete", scale, gate_value,
            torch.empty_like(q).stride(), want_lse, want_mask, want_coarse,
        )  # fmt: skip
        forward = partial(_run, self._index, ops.bound_forward.default, call)
        weakref.finalize(forward, _free, ops.free_call, call)
        return forward

    def backward(
        self, q, k, v, lengths: Lengths, scale, mask, gate: Gate, out, lse, oc, coarse_max,
        coarse_sum, dout, dlse, dq, dk, dv, dgate,
    ) -> None:  # fmt: skip
        self._run(
            torch.ops.vidsparse_native.backward.default, q, k, v, *lengths, scale, mask,
            *_split(gate), out, lse, oc, coarse_max, coarse_sum, dout, dlse, dq, dk, dv, dgate,
        )  # fmt: skip


def _split(gate: Gate) -> tuple[float | None, Tensor | None]:
    """The gate as the operators take it: a number or a tensor."""
    return (None, gate) if isinstance(gate, Tensor) else (gate, None)


class NativeBackend(Backend):
    def __init__(self, name: str, on_request: bool, summary: str):
        self.name = name
        self.on_request = on_request
        self.summary = summary

    def can_run(self, problem: Problem | None, device: torch.device) -> Verdict:
        if device.type not in ("cpu", "cuda"):
            return Verdict(False, f"the device is {device}")
        if problem is not None and problem.dtype not in _DTYPES:
            return Verdict(False, f"the dtype is {problem.dtype}")
        ops = torch.ops.vidsparse_native
        try:
            if problem is None:
                text = ops.list_backends(*_device_code(device))
            else:
                text = ops.explain(*_problem_code(problem), *_device_code(device))
        except RuntimeError as error:
            translate(error)
        return next(verdict for name, verdict, _, _ in rows_of(text) if name == self.name)

    def prepare(self, problem: Problem, device: torch.device) -> Kernels:
        return NativeKernels(problem, device, self.name)


@lru_cache(maxsize=1)
def _backends() -> tuple[Backend, ...]:
    if library() is None:
        return ()
    rows = rows_of(torch.ops.vidsparse_native.list_backends(0, 0))
    return tuple(NativeBackend(name, request, summary) for name, _, request, summary in rows)


def backends() -> list[Backend]:
    """In the library's order of preference; nothing in a pure-Python installation."""
    return list(_backends())
