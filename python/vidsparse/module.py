"""The op as a module with its learned gate, and gate weights as checkpoints name them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .backends import PrefixMode
from .errors import refuse
from .functional import Layout, video_sparse_attention
from .sequence import Ints, Sequence, check_integer, parse_tile


class VideoSparseAttention(nn.Module):
    """Video Sparse Attention between a transformer's projections, with the gate as a projection of
    the same hidden states: `to_gate_compress`, zero-initialised, so that training starts from
    sparse attention alone.

    Args:
        dim: width of the hidden states.
        heads, head_dim: of q and of the gate; head_dim is dim // heads by default.
        gate: whether there is a gate at all; without, the pooled branch is not computed.
        bias: of the gate's projection.
        tile, scale, prefix_mode, backend: as in `video_sparse_attention`.

    Sparsity is an argument of each call, not an attribute: it may change with every step.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        *,
        gate: bool = True,
        bias: bool = True,
        tile: int | Ints = (4, 4, 4),
        scale: float | None = None,
        prefix_mode: PrefixMode = "exempt",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, size in (("dim", dim), ("heads", heads), ("head_dim", head_dim)):
            if size is not None:
                check_integer(name, size, least=1)
        if head_dim is None and dim % heads != 0:
            refuse("heads", f"a divisor of dim {dim}, or head_dim beside it", heads)
        self.heads = heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.tile = parse_tile(tile)
        self.scale = scale
        self.prefix_mode: PrefixMode = prefix_mode
        self.backend = backend
        self.to_gate_compress: nn.Linear | None = None
        if gate:
            width = heads * self.head_dim
            self.to_gate_compress = GateProjection(dim, width, bias, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_zeros_for_missing)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hidden_states: Tensor | None = None,
        *,
        grid: Ints | None = None,
        query: Sequence | None = None,
        key: Sequence | None = None,
        sparsity: float | None = None,
        top_k: int | None = None,
        prefix: Ints = (),
        layout: Layout = "raster",
        query_lengths: Tensor | None = None,
        key_lengths: Tensor | None = None,
        always: Tensor | None = None,
    ) -> Tensor:
        """q [B, S, H, D], k and v [B, Sk, G, D] after norm and RoPE; hidden_states [B, S, dim],
        the ones q was projected from, where there is a gate. Returns [B, S, H, D]."""
        gate = None
        if self.to_gate_compress is not None:
            if hidden_states is None:
                refuse("hidden_states", "the tensor that q was projected from, for the gate", None)
            gate = self.to_gate_compress(hidden_states).unflatten(-1, (self.heads, self.head_dim))
        out = video_sparse_attention(
            q, k, v, grid=grid, query=query, key=key, tile=self.tile, sparsity=sparsity,
            top_k=top_k, gate=gate, scale=self.scale, prefix=prefix, prefix_mode=self.prefix_mode,
            layout=layout, query_lengths=query_lengths, key_lengths=key_lengths, always=always,
            backend=self.backend,
        )  # fmt: skip
        return out


class GateProjection(nn.Linear):
    """Of zeros, to begin with and whenever it is reset."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def _zeros_for_missing(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Checkpoints from before the gate load with a gate of zero; it lies on the CPU where the
    module is on the meta device, whose parameters `assign=True` replaces."""
    for name, parameter in module.named_parameters(prefix=prefix.removesuffix(".")):
        if name.startswith(f"{prefix}to_gate_compress."):
            device = "cpu" if parameter.is_meta else None
            state_dict.setdefault(name, torch.zeros_like(parameter, device=device))


def load_gate_weights(
    gates: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]
) -> list[str]:
    """Loads gate projections from a checkpoint.

    Args:
        gates: by the path of the module that holds each, "blocks.3.attn1".
        weights: a state dict, of the gates alone or of a whole model. A gate's weight is found as
            PATH.to_gate_compress.weight or, one module up, blocks.3.to_gate_compress.weight; a
            prefix before that ("transformer.") is fine, but only one.

    Returns the paths of the gates that were found; the others are set to zero.
    """
    by_end = {}
    for name, tensor in weights.items():
        head, gate_name, end = name.rpartition("to_gate_compress.")
        if gate_name:
            by_end[f".{head.strip('.')}", end] = tensor
    loaded = []
    with torch.no_grad():
        for path, gate in gates.items():
            parent = path.rpartition(".")[0]
            complete = True
            for end, parameter in gate.named_parameters():
                found = _find(by_end, (path, parent), end)
                complete &= found is not None
                if found is None:
                    parameter.zero_()
                elif found.shape != parameter.shape:
                    expected = f"{list(parameter.shape)} for {path}.to_gate_compress.{end}"
                    refuse("gate_weights", expected, list(found.shape))
                else:
                    parameter.copy_(found)
            if complete:
                loaded.append(path)
    return loaded


def _find(
    by_end: Mapping[tuple[str, str], Tensor], paths: tuple[str, str], end: str
) -> Tensor | None:
    for path in paths:
        heads = [head for head, kind in by_end if kind == end and head.endswith(f".{path}")]
        if len(heads) > 1:
            found = ", ".join(head.lstrip(".") for head in heads)
            refuse("gate_weights", f"one to_gate_compress.{end} of {path}", f"those of {found}")
        if heads:
            return by_end[heads[0], end]
    return None
