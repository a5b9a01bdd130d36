"""The op as torch operators torch.ops.vidsparse.*, opaque to whatever traces or intercepts:
torch.compile, export, fake tensors, dispatch modes, subclasses. Eager code on plain tensors goes
past them (calls.py): the dispatcher with a Python kernel would cost more than the host budget of a
layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import (
    Options,
    bind,
    is_plain,
    keeps,
    remember,
    run,
    run_backward,
    run_forward,
    unfuse,
)
from .errors import refuse
from .layout import mask_words
from .prepared import Shape, count_tokens, describe

# Outputs are always tensors; an empty one stands for None.

_OPTIONS = (
    "Tensor? query_lengths, Tensor? key_lengths, Tensor? mask, SymInt[] query, SymInt[] key, "
    "SymInt[] tile, float? scale, float? gate_value, str? backend"
)
_library = torch.library.Library("vidsparse", "DEF")
_library.define(
    f"forward(Tensor q, Tensor? k, Tensor? v, Tensor? gate, {_OPTIONS}, Tensor? always, "
    "Tensor? sparsity, SymInt? top_k, bool compete, bool want_lse, bool want_mask, bool keep)"
    " -> (Tensor out, Tensor lse, Tensor mask, Tensor oc, Tensor coarse_max, Tensor coarse_sum)"
)
_library.define(
    f"backward(Tensor q, Tensor? k, Tensor? v, Tensor? gate, {_OPTIONS}, Tensor out, Tensor lse, "
    "Tensor? oc, Tensor? coarse_max, Tensor? coarse_sum, Tensor dout, Tensor? dlse, "
    "bool want_dgate) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dgate)"
)


def _forward_operator(
    q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value, backend,
    always, sparsity, top_k, compete, want_lse, want_mask, keep,
):  # fmt: skip
    options = Options(
        Shape(tuple(query), tuple(key), tuple(tile)), query_lengths, key_lengths, mask, always,
        sparsity, top_k, compete, scale, gate_value, backend, want_lse, want_mask,
    )  # fmt: skip
    out, *kept = run_forward(q, k, v, gate, bind(q, k, v, gate, options, keep))
    return out, *(q.new_empty(0) if x is None else x for x in kept)


def _backward_operator(
    q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value, backend,
    out, lse, oc, coarse_max, coarse_sum, dout, dlse, want_dgate,
):  # fmt: skip
    options = Options(
        Shape(tuple(query), tuple(key), tuple(tile)), query_lengths, key_lengths, mask, None,
        None, None, False, scale, gate_value, backend, False, False,
    )  # fmt: skip
    bound = bind(q, k, v, gate, options, keep=True)
    coarse = (oc, coarse_max, coarse_sum)
    gradients = run_backward(
        q, k, v, gate, bound, bound.mask, out, lse, coarse, dout, dlse, want_dgate
    )
    return tuple(q.new_empty(0) if x is None else x for x in gradients)


def _fake_forward(
    q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value, backend,
    always, sparsity, top_k, compete, want_lse, want_mask, keep,
):  # fmt: skip
    q, k, v = unfuse(q, k, v)
    query_tokens, query_tiles, _, _ = count_tokens(query, tile)
    key_tokens, key_tiles, _, _ = count_tokens(key, tile)
    expected = ("q", q, query_tokens), ("k", k, key_tokens), ("v", v, key_tokens)
    for name, tensor, tokens in expected:
        if tensor.ndim != 4 or tensor.shape[1] != tokens:
            refuse(name, f"[batch, {tokens}, heads, head_dim]", describe(tensor))
    if gate is not None and gate.shape != q.shape:
        refuse("gate", f"q's {list(q.shape)}", describe(gate))
    batch, _, heads, head_dim = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

    def empty(wanted, shape, dtype):
        return q.new_empty(shape, dtype=dtype) if wanted else q.new_empty(0)

    selects = mask is None
    coarse = keep and selects and (gate is not None or gate_value is not None)
    words = (batch, heads, query_tiles, mask_words(key_tiles))
    return (
        torch.empty_like(q),
        empty(keep or want_lse, (batch, heads, query_tokens), dtype),
        empty(selects and (keep or want_mask), words, torch.int64),
        empty(coarse, (batch, heads, query_tiles, head_dim), dtype),
        empty(coarse, (batch, heads, query_tiles), dtype),
        empty(coarse, (batch, heads, query_tiles), dtype),
    )


def _fake_backward(q, k, v, gate, *rest):
    *_, want_dgate = rest
    gradients = [torch.empty_like(x) if x is not None else q.new_empty(0) for x in (q, k, v)]
    wanted = gate is not None and want_dgate
    return *gradients, torch.empty_like(gate) if wanted else q.new_empty(0)


def _setup_context(ctx, inputs, output):
    (
        q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value,
        backend, *_,
    ) = inputs  # fmt: skip
    out, lse, selected, *coarse = output
    mask = selected if mask is None else mask
    ctx.save_for_backward(q, k, v, gate, query_lengths, key_lengths, mask, out, lse, *coarse)
    ctx.static = query, key, tile, scale, gate_value, backend
    ctx.has_coarse = gate is not None or gate_value is not None
    ctx.mark_non_differentiable(*output[2:])


def _operator_backward(ctx, dout, dlse, *_):
    *inputs, out, lse, oc, coarse_max, coarse_sum = ctx.saved_tensors
    coarse = (oc, coarse_max, coarse_sum) if ctx.has_coarse else (None, None, None)
    want_dgate = ctx.needs_input_grad[3]
    dq, dk, dv, dgate = torch.ops.vidsparse.backward(
        *inputs, *ctx.static, out, lse, *coarse,
        torch.zeros_like(out) if dout is None else dout, dlse, want_dgate,
    )  # fmt: skip
    fused = inputs[1] is None
    return (
        dq, None if fused else dk, None if fused else dv, dgate if want_dgate else None,
        *[None] * 16,
    )  # fmt: skip


def _second_derivative(ctx, *_):
    raise RuntimeError("vidsparse: expected first derivatives only, got a backward of backward")


for _name, _run, _fake in (
    ("forward", _forward_operator, _fake_forward),
    ("backward", _backward_operator, _fake_backward),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vidsparse::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "vidsparse::forward", _operator_backward, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd("vidsparse::backward", _second_derivative, lib=_library)


def traceable(sparsity: float | Tensor | None) -> Tensor | None:
    """As a tensor, made by arithmetic: torch.compile makes a changing float dynamic only where it
    enters a tensor operation, and would recompile for each value otherwise."""
    if sparsity is None:
        return None
    return torch.ones((), dtype=torch.float64, device="cpu") * sparsity


def forward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    gate: Tensor | None,
    options: Options,
    key: tuple | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """out, lse, mask, with autograd; what was not asked for may be anything. The call is remembered
    by `key`."""
    keep = keeps(q, k, v, gate)
    if is_plain(q, k, v, gate):
        bound = bind(q, k, v, gate, options, keep)
        if key is not None:
            bound = remember(key, q, k, v, gate, bound)
        return run(q, k, v, gate, bound)
    return torch.ops.vidsparse.forward(
        q, k, v, gate, options.query_lengths, options.key_lengths, options.mask, *options.shape,
        options.scale, options.gate_value, options.backend, options.always,
        traceable(options.sparsity), options.top_k, options.compete, options.want_lse,
        options.want_mask, keep,
    )[:3]  # fmt: skip
