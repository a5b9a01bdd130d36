"""The stages before attention on their own, as calls and as torch operators: pool and select.
Neither is differentiable: no gradient passes the selection."""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import is_plain
from .errors import refuse
from .layout import mask_words
from .ops import traceable
from .prepared import LENGTHS, Shape, count_tokens, describe, prepare, prepare_sizes


def _run_pool(
    q, k, v, query_lengths, key_lengths, query, key, tile, backend, *, names=LENGTHS
) -> tuple[Tensor, Tensor, Tensor | None]:
    shape = Shape(tuple(query), tuple(key), tuple(tile))
    prepared = prepare(shape, q, k, k if v is None else v, backend)
    lengths = prepared.check_lengths(query_lengths, key_lengths, names)
    acc = prepared.accumulator
    qc = q.new_empty(prepared.query_pooled, dtype=acc)
    kc = q.new_empty(prepared.key_pooled, dtype=acc)
    vc = None if v is None else torch.empty_like(kc)
    prepared.kernels.pool(q, k, v, lengths, qc, kc, vc)
    return qc, kc, vc


def _run_select(
    qc, kc, vc, query_lengths, key_lengths, query, key, tile, scale, backend, always, sparsity,
    top_k, compete, *, names=LENGTHS,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    for name, tensor in (("qc", qc), ("kc", kc)):
        if tensor.ndim != 4 or tensor.dtype not in (torch.float32, torch.float64):
            pooled = "[batch, heads, tiles, head_dim] torch.float32 or float64"
            refuse(name, pooled, describe(tensor))
    # Pooled tensors are float32 for every input dtype but float64; one that backends of the device
    # take stands for the others.
    half = torch.float32 if qc.device.type == "cpu" else torch.bfloat16
    dtype = torch.float64 if qc.dtype == torch.float64 else half
    batch, heads, _, head_dim = qc.shape
    shape = Shape(tuple(query), tuple(key), tuple(tile))
    prepared = prepare_sizes(
        shape, batch, heads, kc.shape[1], head_dim, dtype, qc.device, backend
    )
    for name, tensor, expected in (
        ("qc", qc, prepared.query_pooled),
        ("kc", kc, prepared.key_pooled),
        ("vc", vc, prepared.key_pooled),
    ):
        if tensor is None:
            continue
        if tensor.shape != expected or tensor.dtype != qc.dtype:
            refuse(name, f"{list(expected)} {qc.dtype}", describe(tensor))
        prepared.check_device(name, tensor)
    lengths = prepared.check_lengths(query_lengths, key_lengths, names)
    selection = prepared.selection(sparsity, top_k, compete, always)
    mask = qc.new_empty(prepared.mask, dtype=torch.int64)
    oc = coarse_max = coarse_sum = None
    if vc is not None:
        oc = qc.new_empty(prepared.query_pooled)
        coarse_max = qc.new_empty(prepared.tile_rows)
        coarse_sum = qc.new_empty(prepared.tile_rows)
        vc = vc.contiguous()
    prepared.kernels.select(
        qc.contiguous(), kc.contiguous(), vc, lengths, selection,
        prepared.scale if scale is None else scale, mask, oc, coarse_max, coarse_sum,
    )  # fmt: skip
    return mask, oc, coarse_max, coarse_sum


def _fake_pool(q, k, v, query_lengths, key_lengths, query, key, tile, backend):
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

    def pooled(tensor, code):
        batch, _, heads, head_dim = tensor.shape
        return q.new_empty((batch, heads, count_tokens(code, tile)[1], head_dim), dtype=dtype)

    return pooled(q, query), pooled(k, key), q.new_empty(0) if v is None else pooled(v, key)


def _fake_select(
    qc, kc, vc, query_lengths, key_lengths, query, key, tile, scale, backend, always, sparsity,
    top_k, compete,
):  # fmt: skip
    mask = qc.new_empty((*qc.shape[:3], mask_words(kc.shape[2])), dtype=torch.int64)
    if vc is None:
        return mask, qc.new_empty(0), qc.new_empty(0), qc.new_empty(0)
    return mask, qc.new_empty(qc.shape), qc.new_empty(qc.shape[:3]), qc.new_empty(qc.shape[:3])


_library = torch.library.Library("vidsparse", "FRAGMENT")
_SHAPE = (
    "Tensor? query_lengths, Tensor? key_lengths, SymInt[] query, SymInt[] key, SymInt[] tile"
)
_library.define(
    f"pool(Tensor q, Tensor k, Tensor? v, {_SHAPE}, str? backend)"
    " -> (Tensor qc, Tensor kc, Tensor vc)"
)
_library.define(
    f"select(Tensor qc, Tensor kc, Tensor? vc, {_SHAPE}, float? scale, str? backend, "
    "Tensor? always, Tensor? sparsity, SymInt? top_k, bool compete)"
    " -> (Tensor mask, Tensor oc, Tensor coarse_max, Tensor coarse_sum)"
)


def _as_operator(run):
    """`run` with an empty tensor for each None."""

    def operator(first, *rest):
        return tuple(first.new_empty(0) if x is None else x for x in run(first, *rest))

    return operator


for _name, _run, _fake in (("pool", _run_pool, _fake_pool), ("select", _run_select, _fake_select)):
    _library.impl(_name, _as_operator(_run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"vidsparse::{_name}", _fake, lib=_library)


def pool(q: Tensor, k: Tensor, v: Tensor | None, *rest, names: tuple[str, str]):
    """Arguments as the operator's, in its order; vc is None where v is. `names`: the caller's for
    the lengths."""
    with torch.no_grad():
        if is_plain(q, k, v):
            return _run_pool(q, k, v, *rest, names=names)
        qc, kc, vc = torch.ops.vidsparse.pool(q, k, v, *rest)
        return qc, kc, None if v is None else vc


def select(qc: Tensor, kc: Tensor, vc: Tensor | None, *rest, names: tuple[str, str]):
    """Arguments as the operator's, in its order, with sparsity a number; all but the mask are None
    where vc is. `names`: the caller's for the lengths."""
    with torch.no_grad():
        if is_plain(qc, kc, vc):
            return _run_select(qc, kc, vc, *rest, names=names)
        *front, sparsity, top_k, compete = rest
        mask, *coarse = torch.ops.vidsparse.select(
            qc, kc, vc, *front, traceable(sparsity), top_k, compete
        )
        return (mask, None, None, None) if vc is None else (mask, *coarse)
