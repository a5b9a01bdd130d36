"""The examples run, and the training one learns."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"


def test_video_block():
    run = subprocess.run(
        [sys.executable, EXAMPLES / "video_block.py"], capture_output=True, text=True, check=True
    )
    assert "backend" in run.stdout and "apart" in run.stdout


def test_training_lowers_the_loss(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location("train_step", EXAMPLES / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, last = module.main(30)
    assert last < 0.6 * first


def test_wan_diffusers():
    pytest.importorskip("diffusers")
    run = subprocess.run(
        [sys.executable, EXAMPLES / "wan_diffusers.py"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout.split(":")[1].split()[0]) < 1e-5  # sparsity 0
