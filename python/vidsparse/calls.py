"""Calls on torch tensors without torch's dispatcher: checked, bound to kernels, run, with autograd;
and the memory of calls seen before, which are not checked again.

A fused qkv [B, S, 3, H, D] is passed as q, with k and v None; its gradient is one tensor likewise.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .backends import Forward, Gate, Lengths, Results, Selection
from .errors import refuse
from .prepared import LENGTHS, Memory, Prepared, Shape, describe, prepare, surroundings
from .sequence import Sequence


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
    lengths_names: tuple[str, str] = LENGTHS


class Bound(NamedTuple):
    """A call that has been checked, without its differentiable tensors."""

    prepared: Prepared
    lengths: Lengths
    selection: Selection | None
    mask: Tensor | None  # where there is no selection
    scale: float
    gate_value: float | None
    want_lse: bool
    want_mask: bool
    keep: bool  # all that backward needs
    forward: Forward | None = None  # of a call that is remembered: the kernels bound to all of it


def unfuse(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, which may come as one tensor."""
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
    keep: bool,
) -> Bound:
    """Checks a call. Raises ArgumentError or UnsupportedError."""
    q, k, v = unfuse(q, k, v)
    prepared = prepare(options.shape, q, k, v, options.backend)
    lengths = prepared.check_lengths(
        options.query_lengths, options.key_lengths, options.lengths_names
    )
    if gate is not None:
        prepared.check_gate(gate)
    selection = mask = None
    if options.mask is None:
        selection = prepared.selection(
            options.sparsity, options.top_k, options.compete, options.always
        )
    else:
        mask = prepared.check_mask("mask", options.mask)
    scale = prepared.scale if options.scale is None else options.scale
    return Bound(
        prepared, lengths, selection, mask, scale, options.gate_value, options.want_lse,
        options.want_mask, keep,
    )  # fmt: skip


def run_forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, gate: Tensor | None, bound: Bound
) -> Results:
    """The whole op, or attention alone over a mask: [B, Sq, H, D], and what is wanted besides."""
    q, k, v = unfuse(q, k, v)
    if bound.forward is not None:
        return bound.forward(q, k, v, gate)
    prepared, lengths, selection, mask, scale, gate_value, want_lse, want_mask, keep, _ = bound
    out = torch.empty_like(q)
    if selection is None:
        assert mask is not None
        lse = None
        if keep or want_lse:
            lse = q.new_empty(prepared.token_rows, dtype=prepared.accumulator)
        prepared.kernels.attend(q, k, v, lengths, scale, mask, None, None, out, lse)
        return out, lse, None, None, None, None
    any_gate = gate_value if gate is None else gate
    kept = prepared.kernels.forward_keeping(
        q, k, v, lengths, selection, scale, any_gate, out, keep or want_lse, keep or want_mask,
        keep and any_gate is not None,
    )  # fmt: skip
    return out, *kept


def _readable(dout: Tensor) -> bool:
    """Whether every backend reads an incoming gradient in place: callers do not choose its strides,
    and sum() gives an expanded one. On GPUs the rules are those of bulk tensor copies."""
    *steps, inner = dout.stride()
    if inner != 1 and dout.shape[3] > 1:
        return False
    if not dout.is_cuda:
        return True
    aligned = all(step > 0 and step % 64 == 0 for step, n in zip(steps, dout.shape) if n > 1)
    return aligned and dout.data_ptr() % 16 == 0


def run_backward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    gate: Tensor | None,
    bound: Bound,
    mask: Tensor,
    out: Tensor,
    lse: Tensor,
    coarse: tuple[Tensor | None, Tensor | None, Tensor | None],
    dout: Tensor | None,
    dlse: Tensor | None,
    want_dgate: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dq, dk, dv, dgate; for a fused qkv its one gradient, None, None, dgate. `coarse`: oc and its
    rows' max and sum, where there is a gate."""
    whole = torch.empty_like(q)
    if k is None or v is None:
        dq, dk, dv = whole.unbind(2)
    else:
        dq, dk, dv = whole, torch.empty_like(k), torch.empty_like(v)
    fused = k is None
    q, k, v = unfuse(q, k, v)
    any_gate: Gate = bound.gate_value if gate is None else gate
    dgate = torch.empty_like(gate) if gate is not None and want_dgate else None
    if dout is None:
        dout = torch.zeros_like(out)
    elif not _readable(dout):
        dout = dout.clone(memory_format=torch.contiguous_format)  # it may be dense, yet misaligned
    if dlse is not None:
        dlse = dlse.contiguous()
    bound.prepared.kernels.backward(
        q, k, v, bound.lengths, bound.scale, mask, any_gate, out, lse, *coarse, dout, dlse, dq, dk,
        dv, dgate,
    )  # fmt: skip
    return (whole, None, None, dgate) if fused else (dq, dk, dv, dgate)


class _Forward(torch.autograd.Function):
    """Differentiable in q, k, v, gate, through out and lse."""

    @staticmethod
    def forward(ctx, q, k, v, gate, bound: Bound):
        out, lse, mask, *coarse = run_forward(q, k, v, gate, bound)
        kept_mask = mask if bound.mask is None else bound.mask
        ctx.save_for_backward(q, k, v, gate, *bound.lengths, kept_mask, out, lse, *coarse)
        ctx.bound = bound
        ctx.set_materialize_grads(False)
        if not (bound.want_lse or bound.want_mask):
            return out  # each output costs autograd a microsecond
        if mask is not None:
            ctx.mark_non_differentiable(mask)
        return out, lse, mask

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlse=None, _=None):
        q, k, v, gate, query_lengths, key_lengths, mask, out, lse, *coarse = ctx.saved_tensors
        bound = ctx.bound
        if query_lengths is not None or key_lengths is not None:
            bound = bound._replace(lengths=Lengths(query_lengths, key_lengths))
        want_dgate = ctx.needs_input_grad[3]
        gradients = run_backward(
            q, k, v, gate, bound, mask, out, lse, coarse, dout, dlse, want_dgate
        )
        return *gradients, None


def run(
    q: Tensor, k: Tensor | None, v: Tensor | None, gate: Tensor | None, bound: Bound
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """out, lse, mask, with autograd; what was not asked for may be anything."""
    if bound.keep or forward_ad._current_level >= 0:  # it refuses forward-mode derivatives
        results = _Forward.apply(q, k, v, gate, bound)
        return results if bound.want_lse or bound.want_mask else (results, None, None)
    return run_forward(q, k, v, gate, bound)[:3]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing traces or intercepts a call on these."""
    if (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or torch._C._is_tracing()  # torch.jit.trace
    ):
        return False
    # A loop, here and below, costs half of what all() of a generator does.
    for x in tensors:
        if x is not None and type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return False
    return True


def keeps(*tensors: Tensor | None) -> bool:
    """Whether a call on these is recorded for backward."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # noqa: SIM110
        if x is not None and x.requires_grad:
            return True
    return False


_seen = Memory[Bound]()
# Types whose objects never change, that a call may be recognised by: no tensor, of whatever class.
_VALUES = frozenset((int, float, bool, str, tuple, torch.Size, Sequence, type(None)))


def look_up(
    q: Tensor, k: Tensor | None, v: Tensor | None, gate: Gate, static: tuple[Hashable, ...]
) -> tuple[tuple | None, Bound | None]:
    """What a call is recognised by, and the call that was remembered by it. The key is `static`,
    all its arguments that are not differentiable, and its tensors but for their data; None for a
    call that is looked at each time: traced, under autocast, with numbers in tensors, with
    arguments that can change or are wrong."""
    gate_tensor = gate if isinstance(gate, Tensor) else None
    if q is None or not is_plain(q, k, v, gate_tensor):
        return None, None
    if not _VALUES.issuperset(map(type, static)):
        return None, None
    on_gpu = q.is_cuda
    if torch.is_autocast_enabled("cuda" if on_gpu else "cpu"):
        return None, None
    front = (
        static, surroundings(on_gpu), keeps(q, k, v, gate_tensor),
        q.shape, q.stride(), q.dtype, q.device,
    )  # fmt: skip
    rest: tuple = ()
    if k is not None and v is not None:
        rest = (k.shape, k.stride(), k.dtype, k.device, v.shape, v.stride(), v.dtype, v.device)
    last: tuple = (gate,)
    if gate_tensor is not None:
        last = (gate_tensor.shape, gate_tensor.stride(), gate_tensor.dtype, gate_tensor.device)
    key = (*front, *rest, *last)
    try:
        return key, _seen.get(key)
    except TypeError:  # an argument without a hash, like a list
        return None, None


def remember(
    key: tuple, q: Tensor, k: Tensor | None, v: Tensor | None, gate: Tensor | None, bound: Bound
) -> Bound:
    """A call of video_sparse_attention without run-time lengths and tiles that are always kept."""
    assert bound.selection is not None
    keep = bound.keep
    gated = gate is not None or bound.gate_value is not None
    forward = bound.prepared.kernels.bind_forward(
        unfuse(q, k, v)[0], bound.selection, bound.scale, bound.gate_value, keep or bound.want_lse,
        keep or bound.want_mask, keep and gated,
    )  # fmt: skip
    return _seen.put(key, bound._replace(forward=forward))
