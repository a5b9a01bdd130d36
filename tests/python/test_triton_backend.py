"""Triton as a row of the backend list: forced by name through the public functions, or refused."""

import contextlib

import pytest
import torch

import judging
import transcription
import vidsparse
from triton_support import DEVICE, GPU
from vidsparse import Plain, Sequence, Video, masks
from vidsparse.backends import Problem, choose
from vidsparse.triton import backend, kernels


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def problem(head_dim=64, dtype=torch.float16):
    sequence = Sequence(Plain(5), Video(3, 5, 8))
    return Problem(sequence, sequence, (4, 4, 4), 1, 2, 1, head_dim, dtype)


def test_public_functions():
    sequence = Sequence(Plain(5), Video(3, 5, 8))
    q, gate = (torch.randn(1, 125, 2, 64, device=DEVICE).half() for _ in range(2))
    k, v = (torch.randn(1, 125, 1, 64, device=DEVICE).half() for _ in range(2))
    leaves = [x.requires_grad_() for x in (q, k, v, gate)]
    tiles, _ = transcription.tiles_of_segments([5, (3, 5, 8)], (4, 4, 4))
    common = dict(query=sequence, key=sequence, backend="triton", return_lse=True)
    _, _, mask = vidsparse.video_sparse_attention(
        q, k, v, gate=gate, top_k=2, return_selection=True, **common
    )
    selected = masks.to_bool(mask, len(tiles))

    def op(q, k, v, gate):
        return vidsparse.video_sparse_attention(q, k, v, gate=gate, top_k=2, **common)

    judging.check_call(*leaves, 64**-0.5, tiles, tiles, selected, op)

    def alone(q, k, v, gate):
        return vidsparse.block_sparse_attention(q, k, v, selected, **common)

    judging.check_call(*leaves[:3], None, 64**-0.5, tiles, tiles, selected, alone)


def test_select_alone():
    """Pooled tensors do not say which dtype they come from: one that the backend takes stands in,
    and the interpreter takes no bfloat16."""
    qc, kc = (torch.randn(1, 2, n, 64, device=DEVICE) for n in (3, 7))
    query, key = Sequence(Video(12, 4, 4)), Sequence(Video(4, 4, 28))
    mask = vidsparse.select(qc, kc, query=query, key=key, top_k=2, backend="triton")
    scores = qc.double() @ kc.double().transpose(-1, -2)
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(2).indices, True)
    assert torch.equal(masks.to_bool(mask, 7), best)


@pytest.mark.parametrize(
    "what, change",
    [("head_dim", {"head_dim": 96}), ("dtype", {"dtype": torch.float64})],
)
def test_refusals_name_the_reason(what, change):
    verdict = backend().can_run(problem(**change), DEVICE)
    assert not verdict.ok and what in verdict.reason
    with pytest.raises(vidsparse.UnsupportedError, match=f"triton: {what}"):
        choose(problem(**change), DEVICE, "triton")


@pytest.mark.skipif(GPU, reason="is about machines without a GPU")
def test_a_processor_runs_it_only_interpreted(monkeypatch):
    assert backend().can_run(problem(), DEVICE).ok
    assert "bfloat16" in backend().can_run(problem(dtype=torch.bfloat16), DEVICE).reason
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "TRITON_INTERPRET" in backend().can_run(problem(), DEVICE).reason


class Launches:
    """Of a problem on a device."""

    def __init__(self, *device):
        self.device = torch.device(*device)

    @kernels._on_its_device
    def run(self):
        return self


def test_what_a_graph_captured_is_kept(monkeypatch):
    """Its tables are read by each replay, long after the caches have let them go."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(kernels, "_captured", set())
    one, other = Launches("cuda", 0), Launches("cuda", 0)
    assert one.run() is one and not kernels._captured
    capturing = True
    assert [other.run(), other.run()] == [other, other] and kernels._captured == {other}


def test_a_device_without_an_index(monkeypatch):
    """torch.device("cuda") is the current one, whichever that is."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    one = Launches("cuda")
    assert one.run() is one
