"""Devices, and a seed that a failing test prints."""

import os

import pytest
import torch

import triton_interpreter  # noqa: F401  before anything imports Triton
import vidsparse
from vidsparse.backends import Problem, choose


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Those that compile most first, which processes side by side end sooner by.
    VIDSPARSE_TEST_SHARD=I/N runs every N-th test from the I-th."""
    items.sort(key=lambda item: "compile" not in item.name)
    shard = os.environ.get("VIDSPARSE_TEST_SHARD")
    if shard:
        first, step = map(int, shard.split("/"))
        items[:] = items[first::step]


def can_backward(device, dtype=torch.bfloat16, head_dim=64):
    """Whether a problem has a backend with gradients on `device`."""
    sequence = vidsparse.Sequence.grid((4, 4, 4))
    problem = Problem(sequence, sequence, (4, 4, 4), 1, 1, 1, head_dim, dtype)
    try:
        choose(problem, device, None, gradients=True)
    except vidsparse.UnsupportedError:
        return False
    return True
