"""The public functions. Shapes: B batch, S tokens, H heads (G of keys and values), D head_dim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import torch
from torch import Tensor

from . import ops, stages
from .backends import Gate, PrefixMode
from .calls import Options, look_up, run
from .errors import refuse
from .masks import Mask, as_bitmap, without_tail
from .prepared import LENGTHS, Shape, count_tokens
from .sequence import Ints, Sequence, encode_grid, parse_tile

if TYPE_CHECKING:
    from typing_extensions import Unpack

Layout: TypeAlias = Literal["raster"] | Tensor | tuple[Tensor, Tensor]


# For type checkers: the keyword arguments that do not change what a function returns. With the
# others it returns a tuple, Any because a bool may be false.
class _Common(TypedDict, total=False):
    grid: Ints | None
    query: Sequence | None
    tile: int | Ints
    scale: float | None
    prefix: Ints
    layout: Layout
    backend: str | None


class _Two(_Common, total=False):
    """Where keys may lie otherwise than queries."""

    key: Sequence | None
    kv_grid: Ints | None
    query_lengths: Tensor | None
    key_lengths: Tensor | None


class _Choice(TypedDict, total=False):
    sparsity: float | None
    top_k: int | None
    prefix_mode: PrefixMode
    always: Tensor | None


class _Select(_Two, _Choice, total=False):
    pass


class _Whole(_Select, total=False):
    gate: Gate


class _Fused(_Common, _Choice, total=False):
    gate: Gate
    lengths: Tensor | None


@overload
def video_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: Literal[False] = False,
    return_selection: Literal[False] = False,
    **options: Unpack[_Whole],
) -> Tensor: ...


@overload
def video_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: bool = False,
    return_selection: bool = False,
    **options: Unpack[_Whole],
) -> Any: ...


def video_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    tile: int | Ints = (4, 4, 4),
    sparsity: float | None = None,
    top_k: int | None = None,
    gate: Gate = None,
    scale: float | None = None,
    prefix: Ints = (),
    prefix_mode: PrefixMode = "exempt",
    kv_grid: Ints | None = None,
    layout: Layout = "raster",
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    always: Tensor | None = None,
    return_lse: bool = False,
    return_selection: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Video Sparse Attention: each query tile attends its best key tiles, and `gate` adds the
    pooled branch. Differentiable in q, k, v, gate, through the output and lse.

    Args:
        q: [B, Sq, H, D] after norm and RoPE; any strides, but D contiguous.
        k, v: [B, Sk, G, D] in q's dtype; G divides H.
        grid: (T, H, W) of the latent video, in raster order. Or `query`, or a packed `layout`.
        query, key: sequences of segments; `key` defaults to `query`.
        tile: sides of a tile (t, h, w); the product is a multiple of 64. 4 means (4, 4, 4).
        sparsity: in [0, 1): k = max(1, ceil((1 - sparsity) * video key tiles)) are kept. Or
        top_k: that k itself.
        gate: None for sparse attention alone, a number, or a tensor of q's shape and dtype.
        scale: of the scores; D^-0.5 by default.
        prefix: lengths of Plain segments (text) before the video, with `grid`.
        prefix_mode: "exempt": video queries attend all prefix tiles, and k video tiles besides;
            "compete": the best k + P of all.
        kv_grid: the keys' grid where it is another one (cached frames); same `prefix`.
        layout: "raster", or the valid tokens of each tile where tiles are stored packed: int
            [tiles] or [B, tiles]; a pair for query and key tiles.
        query_lengths, key_lengths: valid tokens of each Plain segment, int [segments] or
            [B, segments]; never read by the host. Give both where the sequences are the same.
        always: bitmap of tiles that are kept on top of the k (vidsparse.masks).
        return_lse: also the fine stage's log-sum-exp, natural, float32 [B, H, Sq].
        return_selection: also the selection as a bitmap, int64 [B, H, Nq, W].
        backend: forces one by name; see vidsparse.info().

    Returns:
        out [B, Sq, H, D] in q's dtype; with return_lse or return_selection a tuple
        (out, lse, selection) of what was asked for.

    Raises:
        ArgumentError: names the argument, what was expected and what came.
        UnsupportedError: no backend can run this; has each one's reason.
    """
    call_key = None
    if query_lengths is key_lengths is always is None and type(layout) is str:
        static = (
            grid, query, key, tile, sparsity, top_k, scale, prefix, prefix_mode, kv_grid, layout,
            return_lse, return_selection, backend,
        )  # fmt: skip
        call_key, bound = look_up(q, k, v, gate, static)
        if bound is not None:
            results = run(q, k, v, gate if isinstance(gate, Tensor) else None, bound)
            return _asked(results, return_lse, return_selection)
    _check_tensors(q=q, k=k, v=v)
    shape, lengths, names = tokens_of(
        grid, query, key, tile, prefix, kv_grid, layout, query_lengths, key_lengths
    )
    q, k, v, gate = _autocast(q, k, v, gate)
    return _forward(
        q, k, v, gate, shape, lengths, names, always, sparsity, top_k, prefix_mode, scale,
        backend, return_lse, return_selection, call_key,
    )  # fmt: skip


@overload
def video_sparse_attention_qkvpacked(
    qkv: Tensor,
    *,
    return_lse: Literal[False] = False,
    return_selection: Literal[False] = False,
    **options: Unpack[_Fused],
) -> Tensor: ...


@overload
def video_sparse_attention_qkvpacked(
    qkv: Tensor,
    *,
    return_lse: bool = False,
    return_selection: bool = False,
    **options: Unpack[_Fused],
) -> Any: ...


def video_sparse_attention_qkvpacked(
    qkv: Tensor,
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    tile: int | Ints = (4, 4, 4),
    sparsity: float | None = None,
    top_k: int | None = None,
    gate: Gate = None,
    scale: float | None = None,
    prefix: Ints = (),
    prefix_mode: PrefixMode = "exempt",
    layout: Layout = "raster",
    lengths: Tensor | None = None,
    always: Tensor | None = None,
    return_lse: bool = False,
    return_selection: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`video_sparse_attention` of one fused tensor [B, S, 3, H, D], read in place; its gradient is
    one tensor too, written in place. `lengths` are those of both sides."""
    call_key = None
    if lengths is always is None and type(layout) is str:
        static = (
            grid, query, tile, sparsity, top_k, scale, prefix, prefix_mode, layout, return_lse,
            return_selection, backend,
        )  # fmt: skip
        call_key, bound = look_up(qkv, None, None, gate, static)
        if bound is not None:
            results = run(qkv, None, None, gate if isinstance(gate, Tensor) else None, bound)
            return _asked(results, return_lse, return_selection)
    _check_tensors(qkv=qkv)
    shape, both, names = tokens_of(
        grid, query, None, tile, prefix, None, layout, lengths, lengths, ("lengths", "lengths")
    )
    qkv, gate = _autocast(qkv, gate)
    return _forward(
        qkv, None, None, gate, shape, both, names, always, sparsity, top_k, prefix_mode, scale,
        backend, return_lse, return_selection, call_key,
    )  # fmt: skip


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[_Two],
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    return_lse: bool = False,
    **options: Unpack[_Two],
) -> Any: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    tile: int | Ints = (4, 4, 4),
    scale: float | None = None,
    prefix: Ints = (),
    kv_grid: Ints | None = None,
    layout: Layout = "raster",
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the tiles that `mask` selects: bool [B, H, Nq, Nk] or [H, Nq, Nk]; a pair of
    index lists int32 [B, H, Nq, M] and their lengths [B, H, Nq]; or a bitmap. Rows that select
    nothing are 0, with lse -inf. Other arguments, autograd and errors as in
    `video_sparse_attention`."""
    _check_tensors(q=q, k=k, v=v)
    shape, lengths, names = tokens_of(
        grid, query, key, tile, prefix, kv_grid, layout, query_lengths, key_lengths
    )
    q, k, v = _autocast(q, k, v)
    bitmap = as_bitmap(mask, count_tokens(shape.key, shape.tile)[1])
    options = Options(
        shape, *lengths, bitmap, None, None, None, False, _number("scale", scale), None, backend,
        return_lse, False, names,
    )  # fmt: skip
    out, lse, _ = ops.forward(q, k, v, None, options)
    return out if lse is None or not return_lse else (out, lse)


def pool(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    tile: int | Ints = (4, 4, 4),
    prefix: Ints = (),
    kv_grid: Ints | None = None,
    layout: Layout = "raster",
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Means over the valid tokens of each tile: qc float32 [B, H, Nq, D], kc and vc
    [B, G, Nk, D] (vc None without v). Not differentiable."""
    _check_tensors(q=q, k=k, **({} if v is None else {"v": v}))
    shape, lengths, names = tokens_of(
        grid, query, key, tile, prefix, kv_grid, layout, query_lengths, key_lengths
    )
    return stages.pool(q, k, v, *lengths, *shape, backend, names=names)


@overload
def select(
    qc: Tensor, kc: Tensor, vc: None = None, **options: Unpack[_Select]
) -> Tensor: ...


@overload
def select(
    qc: Tensor, kc: Tensor, vc: Tensor, **options: Unpack[_Select]
) -> tuple[Tensor, Tensor]: ...


def select(
    qc: Tensor,
    kc: Tensor,
    vc: Tensor | None = None,
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    tile: int | Ints = (4, 4, 4),
    sparsity: float | None = None,
    top_k: int | None = None,
    scale: float | None = None,
    prefix: Ints = (),
    prefix_mode: PrefixMode = "exempt",
    kv_grid: Ints | None = None,
    layout: Layout = "raster",
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    always: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selection of pooled tensors, `pool`'s or your own: qc float32 [B, H, Nq, D], kc and vc
    [B, G, Nk, D]. Returns a bitmap int64 [B, H, Nq, W]; with vc a pair of it and the coarse output
    float32 [B, H, Nq, D]. Not differentiable."""
    _check_tensors(qc=qc, kc=kc, **({} if vc is None else {"vc": vc}))
    shape, lengths, names = tokens_of(
        grid, query, key, tile, prefix, kv_grid, layout, query_lengths, key_lengths
    )
    mask, oc, _, _ = stages.select(
        qc, kc, vc, *lengths, *shape, _number("scale", scale), backend,
        _without_tail(always, shape), sparsity, top_k, _compete(prefix_mode), names=names,
    )  # fmt: skip
    return mask if vc is None else (mask, oc)


def _forward(
    q, k, v, gate, shape, lengths, names, always, sparsity, top_k, prefix_mode, scale, backend,
    return_lse, return_selection, call_key,
):  # fmt: skip
    is_tensor = isinstance(gate, Tensor)
    gate_value = None if is_tensor else _number("gate", gate)
    options = Options(
        shape, *lengths, None, _without_tail(always, shape), sparsity, top_k,
        _compete(prefix_mode), _number("scale", scale), gate_value, backend, return_lse,
        return_selection, names,
    )  # fmt: skip
    results = ops.forward(q, k, v, gate if is_tensor else None, options, call_key)
    return _asked(results, return_lse, return_selection)


def _asked(results, return_lse, return_selection):
    """What was asked for of out, lse and mask."""
    out, lse, mask = results
    if not (return_lse or return_selection):
        return out
    return (out, *((lse,) if return_lse else ()), *((mask,) if return_selection else ()))


def _without_tail(always: Tensor | None, shape: Shape) -> Tensor | None:
    if always is None:
        return None
    _check_tensors(always=always)
    return without_tail(always, count_tokens(shape.key, shape.tile)[1])


def _check_tensors(**tensors: object) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            refuse(name, "a tensor", None if tensor is None else type(tensor).__name__)


def _number(name: str, value: float | None) -> float | None:
    """As a float: kernels take no integers."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        expected = "a number or a tensor of q's shape" if name == "gate" else "a finite number"
        refuse(name, expected, value if isinstance(value, str) else type(value).__name__)


def _compete(prefix_mode: str) -> bool:
    if prefix_mode not in ("exempt", "compete"):
        refuse("prefix_mode", "exempt or compete", prefix_mode)
    return prefix_mode == "compete"


def tokens_of(
    grid, query, key, tile, prefix, kv_grid, layout, query_lengths, key_lengths, names=LENGTHS
) -> tuple[Shape, tuple[Tensor | None, Tensor | None], tuple[str, str]]:
    """The ways to say how tokens lie, as sequences, run-time lengths, and what the caller calls
    these; `names` if they are arguments of their own."""
    sides = parse_tile(tile)
    if not isinstance(layout, str):
        if grid is not None or query is not None or key is not None:
            refuse("layout", "packed sizes alone, without grid, query or key", "both")
        if prefix or kv_grid is not None or query_lengths is not None or key_lengths is not None:
            refuse("layout", "packed sizes alone, without prefix, kv_grid or lengths", "both")
        sizes = layout if isinstance(layout, tuple) else (layout, layout)
        if len(sizes) != 2 or not all(isinstance(x, Tensor) and x.ndim in (1, 2) for x in sizes):
            expected = "raster, or int [tiles] or [B, tiles] or a pair of these"
            got = f"shapes {[list(x.shape) for x in sizes if isinstance(x, Tensor)]}"
            refuse("layout", expected, f"{type(layout).__name__}, {got}")
        slots = sides[0] * sides[1] * sides[2]
        packed = [(2, part.shape[-1], slots, 0) for part in sizes]
        return Shape(packed[0], packed[1], sides), sizes, ("layout", "layout")
    if layout != "raster":
        refuse("layout", "raster or the sizes of packed tiles", layout)
    if (grid is None) == (query is None):
        got = "neither" if grid is None else "both"
        refuse("grid", "exactly one of grid, query and packed sizes in layout", got)
    for name, lengths in zip(names, (query_lengths, key_lengths)):
        if lengths is not None:
            _check_tensors(**{name: lengths})
    for name, sequence in (("query", query), ("key", key)):
        if sequence is not None and not isinstance(sequence, Sequence):
            refuse(name, "a Sequence", repr(sequence))
    if grid is not None:
        query_code = tuple(encode_grid(grid, prefix))
    elif prefix:
        refuse("prefix", "none beside query, which holds the segments", prefix)
    else:
        query_code = tuple(query.encode())
    if kv_grid is not None:
        if key is not None or grid is None:
            refuse("kv_grid", "grid, and no key, beside it", "another combination")
        key_code = tuple(encode_grid(kv_grid, prefix, "kv_grid"))
    else:
        key_code = query_code if key is None else tuple(key.encode())
    return Shape(query_code, key_code, sides), (query_lengths, key_lengths), names


# What autocast casts.
_CAST = frozenset((torch.float32, torch.float16, torch.bfloat16))


def _autocast(q: Tensor, *others: Gate) -> tuple[Any, ...]:
    """All of them, tensors in autocast's dtype where it is on."""
    device = q.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return q, *others
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.dtype in _CAST else x
        for x in (q, *others)
    )
