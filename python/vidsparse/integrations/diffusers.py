"""Video Sparse Attention in the self-attention of diffusers' Wan models.

    handle = vidsparse.integrations.diffusers.enable(pipe, sparsity=0.9)
    ...
    handle.sparsity = 0.8      # from the next call on
    handle.disable()           # the stock model again
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedError, refuse
from ..functional import video_sparse_attention
from ..layout import top_k_of
from ..module import GateProjection, load_gate_weights
from ..sequence import Ints, parse_tile

GateWeights = Mapping[str, Tensor] | str | Path


class Handle:
    """What `enable` did to one or more transformers. `sparsity` may be set at any time."""

    def __init__(self, sparsity: float, tile: int | Ints, backend: str | None):
        self.sparsity = sparsity
        self.tile = parse_tile(tile)
        self.backend = backend
        self.loaded_gates: list[str] = []  # paths of those found in gate_weights
        self._hooks: list[RemovableHandle] = []
        self._stock: list[tuple[WanAttention, Any]] = []  # with the processors they had
        self._gated: list[WanAttention] = []

    def disable(self) -> None:
        """Puts the stock attention back and removes the gates."""
        for hook in self._hooks:
            hook.remove()
        for attn, processor in self._stock:
            attn.set_processor(processor)
        for attn in self._gated:
            del attn.to_gate_compress
        for done in (self._hooks, self._stock, self._gated):
            done.clear()


class _Call(NamedTuple):
    """What a transformer hands to its blocks as rotary embedding, with what else is said of the
    whole call: so it reaches each layer by threads that share a model, and again where a layer is
    recomputed after other calls."""

    freqs_cos: Tensor  # [1, S, 1, D]
    freqs_sin: Tensor
    grid: tuple[int, int, int]
    sparsity: float


class WanSparseProcessor:
    """Attention processor of one self-attention module; `attn.to_gate_compress` is its gate."""

    _attention_backend = None  # diffusers sets these on processors
    _parallel_config = None

    def __init__(self, handle: Handle):
        self.handle = handle

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """hidden_states [B, T*H*W, dim] -> the same shape."""
        if not isinstance(rotary_emb, _Call):
            expected = "that of the transformer's own rope"
            refuse("rotary_emb", expected, type(rotary_emb).__name__)
        freqs_cos, freqs_sin, grid, sparsity = rotary_emb
        if attention_mask is not None or encoder_hidden_states is not None:
            refuse("attention_mask", "self-attention without a mask", "another kind")
        if self._parallel_config is not None:
            raise UnsupportedError("parallel_config: expected none, got context parallelism")
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = (
                linear(hidden_states) for linear in (attn.to_q, attn.to_k, attn.to_v)
            )
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        query, key = (_rotate(x, freqs_cos, freqs_sin) for x in (query, key))
        gate = getattr(attn, "to_gate_compress", None)
        if gate is not None:
            gate = gate(hidden_states).unflatten(2, (attn.heads, -1)).type_as(query)
        out = video_sparse_attention(
            query, key, value, grid=grid, tile=self.handle.tile, sparsity=sparsity, gate=gate,
            backend=self.handle.backend,
        )  # fmt: skip
        out = out.flatten(2, 3)
        for layer in attn.to_out:
            out = layer(out)
        return out


class _RopeHook:
    """Makes a _Call of what a transformer's rope returns; the grid is that of the rope's input."""

    def __init__(self, handle: Handle, patch_size: Ints):
        self.handle = handle
        self.patch_size = patch_size

    def __call__(
        self, rope: nn.Module, args: tuple, kwargs: dict, freqs: tuple[Tensor, Tensor]
    ) -> _Call:
        video = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        t, h, w = video.shape[-3:]
        p_t, p_h, p_w = self.patch_size
        return _Call(*freqs, (t // p_t, h // p_h, w // p_w), self.handle.sparsity)


def _rotate(x: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Tensor:
    """RoPE of pairs of neighbours: x [B, S, H, D], freqs [1, S, 1, D]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = freqs_cos[..., 0::2], freqs_sin[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


def enable(
    pipe_or_transformer: object,
    sparsity: float = 0.9,
    gate_weights: GateWeights | None = None,
    *,
    tile: int | Ints = (4, 4, 4),
    backend: str | None = None,
) -> Handle:
    """Replaces the self-attention of a WanTransformer3DModel, or of every one in a pipeline;
    cross-attention stays.

    Args:
        sparsity: in [0, 1).
        gate_weights: None: no gate. A state dict or a safetensors file: gates are added as
            `attn1.to_gate_compress` and loaded from it, those that it lacks as zeros; {} gives
            zero-initialised gates to train. Of a pipeline with two transformers each takes the
            names that begin with its own ("transformer_2."), where any do.
        tile, backend: as in `video_sparse_attention`.

    Raises ArgumentError where there is no such transformer or it is enabled already, or a weight
    has another shape or could be one of several; the models are as they were then.
    """
    top_k_of(sparsity, 1)  # refuses what is no sparsity
    handle = Handle(sparsity, tile, backend)
    transformers = _transformers(pipe_or_transformer)
    weights = _read(gate_weights)
    try:
        for name, transformer in transformers.items():
            _convert(transformer, handle, _weights_of(name, transformers, weights))
    except BaseException:
        handle.disable()
        raise
    return handle


def _convert(
    transformer: Any, handle: Handle, weights: Mapping[str, Tensor] | None
) -> None:
    """One transformer."""
    hook = _RopeHook(handle, tuple(transformer.config.patch_size))
    handle._hooks.append(transformer.rope.register_forward_hook(hook, with_kwargs=True))
    gates = {}
    for path, attn in _self_attention(transformer).items():
        handle._stock.append((attn, attn.processor))
        attn.set_processor(WanSparseProcessor(handle))
        if weights is not None:
            like = attn.to_out[0].weight
            gates[path] = attn.to_gate_compress = GateProjection(
                like.shape[0], attn.inner_dim, device=like.device, dtype=like.dtype
            )
            handle._gated.append(attn)
    if weights is not None:
        handle.loaded_gates += load_gate_weights(gates, weights)


def _weights_of(
    name: str, names: Collection[str], weights: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor] | None:
    """Those of the transformer that the pipeline holds as `name`: once weights name any of the
    pipeline's transformers, each takes its own alone."""
    if weights is None or not any(key.startswith(f"{x}.") for key in weights for x in names):
        return weights
    return {key: tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}


def _self_attention(transformer: nn.Module) -> dict[str, WanAttention]:
    return {
        path: module
        for path, module in transformer.named_modules()
        if isinstance(module, WanAttention) and not module.is_cross_attention
    }


def _transformers(pipe_or_transformer: object) -> dict[str, Any]:
    """By the name that a pipeline has for it; a transformer itself has none."""
    candidates = {"": pipe_or_transformer}
    if not _is_transformer(pipe_or_transformer):
        names = ("transformer", "transformer_2")
        candidates = {name: getattr(pipe_or_transformer, name, None) for name in names}
    found = {name: x for name, x in candidates.items() if _is_transformer(x)}
    if not found:
        expected = "a WanTransformer3DModel or a pipeline with one"
        refuse("pipe_or_transformer", expected, type(pipe_or_transformer).__name__)
    for transformer in found.values():
        for attn in _self_attention(transformer).values():
            if isinstance(attn.processor, WanSparseProcessor):
                expected = "stock attention"
                refuse("pipe_or_transformer", expected, "one whose handle was not disabled yet")
    return found


def _is_transformer(candidate: object) -> TypeGuard[Any]:
    """Not one wrapped in another module, as for data-parallel training."""
    if not isinstance(candidate, nn.Module) or not hasattr(candidate, "rope"):
        return False
    return bool(_self_attention(candidate))


def _read(gate_weights: GateWeights | None) -> Mapping[str, Tensor] | None:
    if isinstance(gate_weights, (str, Path)):
        from safetensors.torch import load_file

        gate_weights = load_file(gate_weights)
    if gate_weights is None:
        return None
    if not isinstance(gate_weights, Mapping):
        got = type(gate_weights).__name__
        refuse("gate_weights", "None, a state dict or a file of safetensors", got)
    for name, weight in gate_weights.items():
        if "to_gate_compress." in name and not isinstance(weight, Tensor):
            refuse("gate_weights", f"a tensor for {name}", type(weight).__name__)
    return gate_weights
