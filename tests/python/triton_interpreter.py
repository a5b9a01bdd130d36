"""Triton for the interpreter where there is no GPU, with bfloat16 that works there: Triton's own
multiplies the bit patterns and truncates.

Functions are made for the interpreter or for a GPU when they are imported, Triton's own too: this
must be imported before anything imports Triton. The variable is put back after that, so that to the
other tests of the process a CPU stays a device that Triton refuses.
"""

from __future__ import annotations

import importlib.util
import os

import torch

INTERPRETED = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()
if INTERPRETED:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import triton.experimental.gluon  # noqa: F401  Triton imports it at the first launch
    import triton.language as tl
    from triton.runtime import interpreter

    import vidsparse.triton.kernels  # noqa: F401

    if before is None:
        del os.environ["TRITON_INTERPRET"]


def _to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _repair() -> None:
    """Replaces the interpreter's conversions and products of bfloat16."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(data, source, target, rounding):
        if source == tl.bfloat16 and target == tl.float32:
            return _to_float32(data)
        if source == tl.float32 and target == tl.bfloat16:
            return _to_bfloat16(data)
        return convert(data, source, target, rounding)

    def create_dot(self, a, b, d, *rest):
        wide = [
            interpreter.TensorHandle(_to_float32(x.data), tl.float32)
            if x.dtype.scalar == tl.bfloat16
            else x
            for x in (a, b)
        ]
        return dot(self, *wide, d, *rest)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


if INTERPRETED:
    _repair()
