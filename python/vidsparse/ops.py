"""The op on torch tensors: the calls themselves, autograd, and the torch operators for tracing.

Two ways lead to the same calls. Eager code on plain tensors goes straight to them, through an
autograd.Function where gradients are wanted: the dispatcher with a Python kernel would cost more
than the host budget of a layer. Whatever traces or intercepts (torch.compile, export, fake tensors,
dispatch modes, subclasses) sees opaque operators torch.ops.vidsparse.*.

A fused qkv [B, S, 3, H, D] is passed as q, with k and v None; its gradient is one tensor likewise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .backends import Gate, Lengths
from .errors import refuse
from .layout import mask_words
from .prepared import Prepared, Shape, count_tokens, describe, prepare


class Options(NamedTuple):
    """The arguments of a forward call that are not differentiable tensors."""

    shape: Shape
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    mask: Tensor | None  # attend over this bitmap; else select
    always: Tensor | None
    sparsity: float | Tensor | None  # a tensor (0-dim, CPU) out of the operator
    top_k: int | None
    compete: bool
    scale: float | None
    gate_value: float | None
    backend: str | None
    want_lse: bool
    want_mask: bool


class Results(NamedTuple):
    """What a forward call gives; what was not asked for is None."""

    out: Tensor  # [B, Sq, H, D]
    lse: Tensor | None  # acc [B, H, Sq]
    mask: Tensor | None  # int64 [B, H, Nq, W]
    oc: Tensor | None  # acc [B, H, Nq, D]
    coarse_max: Tensor | None  # acc [B, H, Nq]
    coarse_sum: Tensor | None  # acc [B, H, Nq]


class Call(NamedTuple):
    """A call that has been checked, bound to its kernels."""

    prepared: Prepared
    q: Tensor  # [B, Sq, H, D]
    k: Tensor  # [B, Sk, G, D]
    v: Tensor
    gate: Gate
    lengths: Lengths
    scale: float


def _unfuse(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if k is not None and v is not None:
        return q, k, v
    if k is not None or v is not None:
        refuse("k" if k is None else "v", "a tensor", None)
    if q.ndim != 5 or q.shape[2] != 3:
        refuse("qkv", "[batch, tokens, 3, heads, head_dim]", describe(q))
    q, k, v = q.unbind(2)
    return q, k, v


def bind(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    gate: Tensor | None,
    options: Options,
    gradients: bool,
) -> Call:
    """Raises ArgumentError or UnsupportedError."""
    q, k, v = _unfuse(q, k, v)
    prepared = prepare(options.shape, q, k, v, options.backend, gradients)
    lengths = prepared.check_lengths(options.query_lengths, options.key_lengths)
    if gate is not None:
        prepared.check_gate(gate)
    scale = prepared.scale if options.scale is None else options.scale
    return Call(prepared, q, k, v, options.gate_value if gate is None else gate, lengths, scale)


def run_forward(call: Call, options: Options, keep: bool) -> Results:
    """The whole op, or attention alone over options.mask. `keep`: with all that backward needs."""
    prepared, q, k, v, gate, lengths, scale = call
    out = torch.empty_like(q)
    acc = prepared.accumulator
    wants_lse = keep or options.want_lse
    lse = q.new_empty(prepared.token_rows, dtype=acc) if wants_lse else None
    if options.mask is not None:
        mask = prepared.check_mask("mask", options.mask)
        prepared.kernels.attend(q, k, v, lengths, scale, mask, None, None, out, lse)
        return Results(out, lse, None, None, None, None)
    selection = prepared.selection(
        options.sparsity, options.top_k, options.compete, options.always
    )
    wants_mask = keep or options.want_mask
    selected = q.new_empty(prepared.mask, dtype=torch.int64) if wants_mask else None
    oc = coarse_max = coarse_sum = None
    if keep and gate is not None:
        oc = q.new_empty(prepared.query_pooled, dtype=acc)
        coarse_max = q.new_empty(prepared.tile_rows, dtype=acc)
        coarse_sum = q.new_empty(prepared.tile_rows, dtype=acc)
    prepared.kernels.forward(
        q, k, v, lengths, selection, scale, gate, out, lse, selected, oc, coarse_max, coarse_sum
    )
    return Results(out, lse, selected, oc, coarse_max, coarse_sum)


def run_backward(
    call: Call,
    fused: Tensor | None,
    mask: Tensor,
    saved: Results,
    dout: Tensor,
    dlse: Tensor | None,
    want_dgate: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dq, dk, dv, dgate; where q, k and v are views of `fused`, its one gradient, None, None,
    dgate."""
    prepared, q, k, v, gate, lengths, scale = call
    if fused is None:
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    else:
        whole = torch.empty_like(fused)
        dq, dk, dv = whole.unbind(2)
    mask = prepared.check_mask("mask", mask)
    dgate = torch.empty_like(gate) if isinstance(gate, Tensor) and want_dgate else None
    if dout.stride(3) != 1 and dout.shape[3] > 1:  # an expanded gradient, as sum() gives
        dout = dout.contiguous()
    if dlse is not None:
        dlse = dlse.contiguous()
    assert saved.lse is not None
    prepared.kernels.backward(
        q, k, v, lengths, scale, mask, gate, saved.out, saved.lse, saved.oc, saved.coarse_max,
        saved.coarse_sum, dout, dlse, dq, dk, dv, dgate,
    )  # fmt: skip
    return (dq, dk, dv, dgate) if fused is None else (whole, None, None, dgate)


class _Forward(torch.autograd.Function):
    """Eager autograd: differentiable in q, k, v, gate, through out and lse."""

    @staticmethod
    def forward(ctx, q, k, v, gate, options: Options):
        call = bind(q, k, v, gate, options, gradients=True)
        results = run_forward(call, options, keep=True)
        mask = results.mask if options.mask is None else options.mask
        ctx.save_for_backward(q, k, v, gate, *call.lengths, mask, *results)
        ctx.bound = call.prepared, options.gate_value, call.scale
        ctx.set_materialize_grads(False)
        if results.mask is not None:
            ctx.mark_non_differentiable(results.mask)
        return results.out, results.lse, results.mask

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlse, _):
        q, k, v, gate, query_lengths, key_lengths, mask, *results = ctx.saved_tensors
        prepared, gate_value, scale = ctx.bound
        call = Call(
            prepared, *_unfuse(q, k, v), gate_value if gate is None else gate,
            Lengths(query_lengths, key_lengths), scale,
        )  # fmt: skip
        saved = Results(*results)
        dout = torch.zeros_like(saved.out) if dout is None else dout
        fused = q if k is None else None
        want_dgate = ctx.needs_input_grad[3]
        return *run_backward(call, fused, mask, saved, dout, dlse, want_dgate), None


# The operators. Their outputs are always tensors; an empty one stands for None.

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
    results = run_forward(bind(q, k, v, gate, options, gradients=keep), options, keep)
    return tuple(q.new_empty(0) if x is None else x for x in results)


def _backward_operator(
    q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value, backend,
    out, lse, oc, coarse_max, coarse_sum, dout, dlse, want_dgate,
):  # fmt: skip
    options = Options(
        Shape(tuple(query), tuple(key), tuple(tile)), query_lengths, key_lengths, mask, None,
        None, None, False, scale, gate_value, backend, False, False,
    )  # fmt: skip
    call = bind(q, k, v, gate, options, gradients=True)
    saved = Results(out, lse, None, oc, coarse_max, coarse_sum)
    fused = q if k is None else None
    gradients = run_backward(call, fused, mask, saved, dout, dlse, want_dgate)
    return tuple(q.new_empty(0) if x is None else x for x in gradients)


def _fake_forward(
    q, k, v, gate, query_lengths, key_lengths, mask, query, key, tile, scale, gate_value, backend,
    always, sparsity, top_k, compete, want_lse, want_mask, keep,
):  # fmt: skip
    q, k, v = _unfuse(q, k, v)
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


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing traces or intercepts a call on these."""
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    # A loop, here and below, costs half of what all() of a generator does.
    for x in tensors:
        if x is not None and type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return False
    return True


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    for x in tensors:  # noqa: SIM110
        if x is not None and x.requires_grad:
            return True
    return False


def traceable(sparsity: float | Tensor | None) -> Tensor | None:
    """As a tensor, made by arithmetic: torch.compile makes a changing float dynamic only where it
    enters a tensor operation, and would recompile for each value otherwise."""
    if sparsity is None:
        return None
    return torch.ones((), dtype=torch.float64, device="cpu") * sparsity


def forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, gate: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """out, lse, mask, with autograd; what was not asked for may be anything."""
    keep = torch.is_grad_enabled() and _any_requires_grad(q, k, v, gate)
    if is_plain(q, k, v, gate):
        if keep or forward_ad._current_level >= 0:  # it refuses forward-mode derivatives
            return _Forward.apply(q, k, v, gate, options)
        return run_forward(bind(q, k, v, gate, options, keep), options, keep)[:3]
    return torch.ops.vidsparse.forward(
        q, k, v, gate, options.query_lengths, options.key_lengths, options.mask, *options.shape,
        options.scale, options.gate_value, options.backend, options.always,
        traceable(options.sparsity), options.top_k, options.compete, options.want_lse,
        options.want_mask, keep,
    )[:3]  # fmt: skip
