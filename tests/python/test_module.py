"""The module, its gate and its checkpoints."""

import pytest
import torch
from torch import nn

import vidsparse
from vidsparse.module import load_gate_weights

GRID = (4, 8, 8)


def tokens(dim=64):
    return torch.randn(2, 4 * 8 * 8, dim)


def test_gate_starts_at_zero_and_trains():
    module = vidsparse.VideoSparseAttention(64, 2, gate=True)
    x = tokens()
    q, k, v = (torch.randn(2, 256, 2, 32) for _ in range(3))
    out = module(q, k, v, x, grid=GRID, sparsity=0.5)
    bare = vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5)
    torch.testing.assert_close(out, bare, atol=1e-6, rtol=0)
    out.square().sum().backward()
    assert module.to_gate_compress.weight.grad.abs().sum() > 0
    assert module.to_gate_compress.bias.grad.abs().sum() > 0


def test_without_a_gate_there_are_no_parameters():
    module = vidsparse.VideoSparseAttention(64, 2, gate=False)
    assert not list(module.parameters())
    q = torch.randn(2, 256, 2, 32)
    assert module(q, q, q, grid=GRID, top_k=2).shape == q.shape


def test_hidden_states_are_asked_for():
    q = torch.randn(2, 256, 2, 32)
    with pytest.raises(vidsparse.ArgumentError, match="hidden_states: expected"):
        vidsparse.VideoSparseAttention(64, 2)(q, q, q, grid=GRID, top_k=2)


@pytest.mark.parametrize("bias", [True, False])
def test_checkpoints_with_and_without_gate(bias):
    host = nn.ModuleDict({"attn": vidsparse.VideoSparseAttention(64, 2, bias=bias)})
    nn.init.normal_(host["attn"].to_gate_compress.weight)
    weights = host.state_dict()
    assert "attn.to_gate_compress.weight" in weights
    other = nn.ModuleDict({"attn": vidsparse.VideoSparseAttention(64, 2, bias=bias)})
    other.load_state_dict(weights)
    weight = other["attn"].to_gate_compress.weight
    assert torch.equal(weight, weights["attn.to_gate_compress.weight"])
    other.load_state_dict({})
    assert not weight.any()


@pytest.mark.parametrize("place", ["blocks.{}.attn1.", "blocks.{}.", "model.blocks.{}."])
def test_gate_weights_of_hosts(place):
    gates = {f"blocks.{i}.attn1": nn.Linear(8, 8) for i in (1, 11)}
    weight, bias = torch.randn(8, 8), torch.randn(8)
    name = place.format(1) + "to_gate_compress."
    loaded = load_gate_weights(gates, {f"{name}weight": weight, f"{name}bias": bias})
    assert loaded == ["blocks.1.attn1"]
    assert torch.equal(gates["blocks.1.attn1"].weight, weight)
    assert torch.equal(gates["blocks.1.attn1"].bias, bias)
    assert not gates["blocks.11.attn1"].weight.any()
    twice = {f"{model}.{name}weight": weight for model in ("transformer", "ema")}
    with pytest.raises(vidsparse.ArgumentError, match="expected one to_gate_compress"):
        load_gate_weights(gates, twice)
    with pytest.raises(vidsparse.ArgumentError, match="gate_weights: expected"):
        load_gate_weights(gates, {f"{name}weight": weight[:4]})


def test_gate_is_zero_after_materialisation():
    """Trainers make modules on the meta device, then empty memory for them, and reset what can
    be."""
    with torch.device("meta"):
        module = vidsparse.VideoSparseAttention(64, 2)
    module.to_empty(device="cpu")
    nn.init.normal_(module.to_gate_compress.weight)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert not any(p.any() for p in module.parameters())


def test_gates_missing_in_a_checkpoint_that_is_assigned():
    with torch.device("meta"):
        attention = vidsparse.VideoSparseAttention(64, 2, dtype=torch.bfloat16)
        host = nn.ModuleDict({"attn": attention, "out": nn.Linear(2, 2)})
    host.load_state_dict(nn.ModuleDict({"out": nn.Linear(2, 2)}).state_dict(), assign=True)
    for parameter in attention.parameters():
        assert parameter.device == torch.device("cpu") and parameter.dtype == torch.bfloat16
        assert parameter.requires_grad and not parameter.any()


@pytest.mark.parametrize(
    ("argument", "sizes"),
    [("heads", (64, 0)), ("heads", (64, -2)), ("heads", (64, 3)), ("heads", (64, 65)),
     ("heads", (64, 2.0)), ("dim", ("a", 2)), ("dim", (0, 2)), ("head_dim", (64, 2, 0)),
     ("head_dim", (64, 2, -32))],
)  # fmt: skip
def test_sizes_are_checked(argument, sizes):
    with pytest.raises(vidsparse.ArgumentError, match=rf"^{argument}: expected"):
        vidsparse.VideoSparseAttention(*sizes)
    assert vidsparse.VideoSparseAttention(64, 3, 32).head_dim == 32
