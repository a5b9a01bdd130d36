"""The examples run, and the training one learns."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"


def test_video_block():
    run = subprocess.run(
        [sys.executable, EXAMPLES / "video_block.py"], capture_output=True, text=True, check=True
    )
    assert "backend" in run.stdout and "apart" in run.stdout


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_after_inference(monkeypatch):
    module = load("video_block", monkeypatch)
    block, tokens = module.VideoBlock(64, 1), torch.randn(1, 128, 64)
    with torch.inference_mode():
        block(tokens, (2, 8, 8), 0.5)
    block(tokens, (2, 8, 8), 0.5).sum().backward()
    assert block.to_qkv.weight.grad.isfinite().all()


def test_training_lowers_the_loss(monkeypatch):
    first, last = load("train_step", monkeypatch).main(30)
    assert last < 0.6 * first


def test_video_dit_sees_patches_and_starts_as_the_identity(monkeypatch):
    module = load("video_dit", monkeypatch)
    grid = (2, 4, 6)
    clip = torch.randint(0, 256, (4, 32, 48, 3), dtype=torch.uint8)  # one crop's size
    patches = module.crops([clip], 8, grid, torch.Generator().manual_seed(1))
    assert patches.shape == (8, 48, 384)
    token = clip[2:4, 8:16, 40:48].float() / 127.5 - 1  # of patch (1, 1, 5)
    mirrored = clip.flip(2)[2:4, 8:16, 40:48].float() / 127.5 - 1
    seen = [patch[(1 * 4 + 1) * 6 + 5].view(2, 8, 8, 3) for patch in patches]
    assert all(x.equal(token) or x.equal(mirrored) for x in seen)
    assert any(x.equal(token) for x in seen) and any(x.equal(mirrored) for x in seen)

    model = module.VideoDiT(dim=64, heads=1, depth=2)
    time, noise = torch.rand(8), torch.randn_like(patches)
    dense, sparse = (model.loss(patches, time, noise, grid, s) for s in (None, 0.5))
    assert dense.item() == sparse.item()
    sparse.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "modulate" in n)


def test_wan_diffusers():
    pytest.importorskip("diffusers")
    run = subprocess.run(
        [sys.executable, EXAMPLES / "wan_diffusers.py"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout.split(":")[1].split()[0]) < 1e-5  # sparsity 0
