"""The integration with diffusers' Wan models, on small ones with random weights."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters

diffusers = pytest.importorskip("diffusers")

import vidsparse  # noqa: E402
from vidsparse.integrations.diffusers import enable  # noqa: E402

SHAPE = (1, 4, 5, 12, 18)  # batch, channels, frames, height, width: 5 x 6 x 9 tokens


def model(image=False):
    extra = dict(image_dim=16, added_kv_proj_dim=128) if image else {}
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=32, ffn_dim=64, num_layers=2, **extra,
    )  # fmt: skip
    return transformer.eval()


def inputs(image=False):
    call = dict(
        hidden_states=torch.randn(SHAPE),
        timestep=torch.tensor([500]),
        encoder_hidden_states=torch.randn(1, 512 if image else 7, 16),
        return_dict=False,
    )
    if image:
        call["encoder_hidden_states_image"] = torch.randn(1, 5, 16)
    return call


@pytest.mark.parametrize("image", [False, True], ids=["t2v", "i2v"])
@pytest.mark.parametrize("fused", [False, True], ids=["three projections", "fused"])
def test_sparsity_zero_is_the_stock_model(image, fused):
    transformer, call = model(image), inputs(image)
    with torch.no_grad():
        (stock,) = transformer(**call)
        if fused:
            transformer.fuse_qkv_projections()
        handle = enable(transformer, sparsity=0.0)
        (sparse,) = transformer(**call)
        torch.testing.assert_close(sparse, stock, atol=1e-4, rtol=1e-4)
        handle.sparsity = 0.9
        (other,) = transformer(**call)
        assert (other - stock).abs().max() > 1e-4
        handle.disable()
        (again,) = transformer(**call)
    torch.testing.assert_close(again, stock, atol=1e-5, rtol=1e-5)
    assert not any("gate_compress" in name for name, _ in transformer.named_parameters())


@pytest.mark.parametrize("image", [False, True], ids=["t2v", "i2v"])
def test_sparse_training_step(image):
    transformer = model(image).train()
    transformer.enable_gradient_checkpointing()
    enable(transformer, sparsity=0.9, gate_weights={})
    (out,) = transformer(**inputs(image))
    out.square().mean().backward()
    gates = [p for name, p in transformer.named_parameters() if "gate_compress" in name]
    assert len(gates) == 4
    for name, parameter in transformer.named_parameters():
        if "attn1" in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(p.grad.abs().sum() > 0 for p in gates)


def test_gate_weights_of_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    transformer, call = model(), inputs()
    weights = {"blocks.0.to_gate_compress.weight": torch.randn(128, 128)}
    weights["blocks.0.to_gate_compress.bias"] = torch.randn(128)
    save_file(weights, tmp_path / "gates.safetensors")
    bare = enable(transformer, sparsity=0.5)
    with torch.no_grad():
        (without,) = transformer(**call)
    bare.disable()
    handle = enable(transformer, sparsity=0.5, gate_weights=tmp_path / "gates.safetensors")
    assert handle.loaded_gates == ["blocks.0.attn1"]
    gate = transformer.blocks[0].attn1.to_gate_compress
    assert torch.equal(gate.weight, weights["blocks.0.to_gate_compress.weight"])
    assert not transformer.blocks[1].attn1.to_gate_compress.weight.any()
    assert not hasattr(transformer.blocks[0].attn2, "to_gate_compress")
    with torch.no_grad():
        (gated,) = transformer(**call)
    assert (gated - without).abs().max() > 1e-4


def test_pipelines_with_two_transformers():
    class Pipeline:
        transformer, transformer_2 = model(), model()

    handle = enable(Pipeline(), sparsity=0.5)
    for transformer in (Pipeline.transformer, Pipeline.transformer_2):
        assert type(transformer.blocks[0].attn1.processor).__name__ == "WanSparseProcessor"
        assert type(transformer.blocks[0].attn2.processor).__name__ == "WanAttnProcessor"
    handle.disable()
    assert type(Pipeline.transformer_2.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"


def test_gate_weights_of_two_transformers():
    class Pipeline:
        transformer, transformer_2 = model(), model()

    pipe = Pipeline()
    name = "blocks.0.attn1.to_gate_compress.weight"
    one, two = torch.randn(2, 128, 128)
    weights = {f"transformer.{name}": one, f"transformer_2.{name}": two}

    def loaded():
        both = (pipe.transformer, pipe.transformer_2)
        return [x.blocks[0].attn1.to_gate_compress.weight for x in both]

    handle = enable(pipe, gate_weights=weights)
    assert all(map(torch.equal, loaded(), (one, two)))
    handle.disable()
    handle = enable(pipe, gate_weights={f"transformer_2.{name}": two})
    assert all(map(torch.equal, loaded(), (0 * two, two)))
    handle.disable()
    handle = enable(pipe, gate_weights={name: one})
    assert all(map(torch.equal, loaded(), (one, one)))
    handle.disable()
    with pytest.raises(vidsparse.ArgumentError, match="gate_weights: expected one"):
        enable(pipe.transformer, gate_weights=weights)


def test_refused_gate_weights_leave_the_stock_model():
    class Pipeline:
        transformer, transformer_2 = model(), model()

    name = "blocks.1.attn1.to_gate_compress.bias"
    weights = {f"transformer.{name}": torch.ones(128), f"transformer_2.{name}": torch.ones(3)}
    with pytest.raises(vidsparse.ArgumentError, match="gate_weights: expected"):
        enable(Pipeline(), gate_weights=weights)
    for transformer in (Pipeline.transformer, Pipeline.transformer_2):
        assert not any("gate_compress" in name for name, _ in transformer.named_parameters())
        assert not transformer.rope._forward_hooks
        for block in transformer.blocks:
            assert type(block.attn1.processor).__name__ == "WanAttnProcessor"


def test_another_model_is_refused():
    with pytest.raises(vidsparse.ArgumentError, match="pipe_or_transformer: expected"):
        enable(torch.nn.Linear(2, 2))


def test_compiled_transformer():
    transformer, call = model(), inputs()
    handle = enable(transformer, sparsity=0.5)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(transformer, backend="aot_eager", fullgraph=True)
    seen = []
    with torch.no_grad():
        for sparsity in (0.5, 0.6, 0.7, 0.8):
            handle.sparsity = sparsity
            (eager,) = transformer(**call)
            (out,) = compiled(**call)
            torch.testing.assert_close(out, eager, atol=1e-4, rtol=1e-4)
            seen.append(counters["stats"]["unique_graphs"])
    assert seen == [1, 2, 2, 2]


def test_grids_go_with_their_calls():
    """Two videos of one length and other sides, whose layers are recomputed after both."""
    transformer = model().train()
    enable(transformer, sparsity=0.75, gate_weights={})
    calls = [inputs() for _ in range(2)]
    calls[1]["hidden_states"] = torch.randn(1, 4, 5, 18, 12)
    gradients = []
    for checkpointing in (False, True):
        transformer.zero_grad()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        sum(transformer(**call)[0].square().mean() for call in calls).backward()
        gradients.append([p.grad for p in transformer.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_threads_share_a_model():
    transformer = model()
    enable(transformer, sparsity=0.5)
    calls = [inputs() for _ in range(2)]
    calls[1]["hidden_states"] = torch.randn(1, 4, 5, 18, 12)

    def run(call):
        with torch.no_grad():
            return transformer(**call)[0]

    expected = [run(call) for call in calls]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            torch.testing.assert_close(list(threads.map(run, calls)), expected)


def test_enabled_twice_is_refused():
    transformer, call = model(), inputs()
    with torch.no_grad():
        (stock,) = transformer(**call)
        handle = enable(transformer, sparsity=0.5, gate_weights={})
        with pytest.raises(vidsparse.ArgumentError, match="pipe_or_transformer: expected stock"):
            enable(transformer, sparsity=0.9)
        assert hasattr(transformer.blocks[0].attn1, "to_gate_compress")
        handle.disable()
        handle.disable()
        (again,) = transformer(**call)
    assert torch.equal(again, stock)
    assert not transformer.rope._forward_hooks


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_an_enabled_model(duplicate):
    """They have a handle of their own."""
    transformer, call = model(), inputs()
    handle = enable(transformer, sparsity=0.5, gate_weights={})
    other = duplicate(transformer)
    with torch.no_grad():
        (expected,) = transformer(**call)
        (got,) = other(**call)
        torch.testing.assert_close(got, expected)
        other.blocks[0].attn1.processor.handle.disable()
        (again,) = transformer(**call)
    assert torch.equal(again, expected)
    assert type(other.blocks[1].attn1.processor).__name__ == "WanAttnProcessor"
    assert not any("gate_compress" in name for name, _ in other.named_parameters())
    handle.disable()
    assert not any("gate_compress" in name for name, _ in transformer.named_parameters())


def test_what_enable_refuses():
    wrapped = torch.nn.ModuleDict({"module": model()})  # as DistributedDataParallel wraps one
    with pytest.raises(vidsparse.ArgumentError, match=r"pipe_or_transformer: .* got ModuleDict"):
        enable(wrapped)
    name = "blocks.0.attn1.to_gate_compress.weight"
    for weights in ([name], {name: [0.0]}, 3):
        transformer = model()
        with pytest.raises(vidsparse.ArgumentError, match="gate_weights: expected"):
            enable(transformer, gate_weights=weights)
        assert type(transformer.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"
    with pytest.raises(vidsparse.ArgumentError, match="sparsity: expected"):
        enable(model(), sparsity=1.0)
