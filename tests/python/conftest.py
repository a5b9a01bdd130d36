"""Devices, and a seed that a failing test prints."""

import os

import pytest
import torch

import triton_interpreter  # noqa: F401  before anything imports Triton
import vidsparse


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seed(request):
    """Fresh inputs in each run; VIDSPARSE_TEST_SEED repeats one."""
    value = int(os.environ.get("VIDSPARSE_TEST_SEED") or torch.seed() % 2**31)
    torch.manual_seed(value)
    request.node.add_report_section("setup", "seed", f"VIDSPARSE_TEST_SEED={value}")
    return value


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


def can_backward(device, dtype=torch.bfloat16, head_dim=64):
    """Whether the backend that a problem gets on `device` has gradients."""
    q = torch.randn(1, 64, 1, head_dim, dtype=dtype, device=device, requires_grad=True)
    try:
        vidsparse.video_sparse_attention(q, q, q, grid=(4, 4, 4), top_k=1).sum().backward()
    except vidsparse.UnsupportedError:
        return False
    return True
