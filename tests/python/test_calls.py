"""The memory of calls seen before: it may change no result."""

import itertools

import pytest
import torch

import vidsparse
from vidsparse import calls

GRID = (5, 4, 8)


def variants():
    """Calls that differ in one thing or several, some of which cannot be remembered."""
    wide = torch.randn(1, 160, 3, 2, 64)
    narrow = torch.randn(1, 160, 2, 64)
    for dtype, gate, grad in itertools.product(
        (torch.float32, torch.bfloat16), (None, 1.0, 0.5, "tensor"), (False, True)
    ):
        q, k, v = (x.detach().to(dtype).requires_grad_(grad) for x in wide.unbind(2))
        number = narrow.to(dtype) if gate == "tensor" else gate
        for changes in (
            dict(top_k=1),
            dict(top_k=3),
            dict(top_k=1, scale=0.3),
            dict(sparsity=0.5, tile=4),
            dict(sparsity=torch.tensor(0.5)),
            dict(top_k=2, grid=list(GRID)),
            dict(top_k=2, grid=(4, 4, 8), prefix=(32,)),
            dict(top_k=1, grid=(4, 4, 8), prefix=(32,), prefix_mode="compete"),
            dict(top_k=1, return_lse=True, return_selection=True),
            dict(top_k=1, backend="reference"),
            dict(top_k=1, always=torch.full((1, 1, 4, 2), 2)),
        ):
            yield (q, k, v), dict(grid=GRID, gate=number) | changes


def results_of(tensors, arguments):
    results = vidsparse.video_sparse_attention(*tensors, **arguments)
    results = results if isinstance(results, tuple) else (results,)
    if tensors[0].requires_grad:
        results += torch.autograd.grad(results[0].square().sum(), tensors)
    return results


def test_remembered_calls_give_what_fresh_ones_do():
    everything = list(variants())
    fresh = []
    for call in everything:
        calls._seen.clear()
        fresh.append(results_of(*call))
    calls._seen.clear()
    for index in torch.randperm(2 * len(everything)).tolist():
        call, expected = everything[index // 2], fresh[index // 2]
        got = results_of(*call)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), call[1]
    assert 0 < len(calls._seen) < len(everything)


def test_only_the_first_call_is_checked(monkeypatch):
    q = torch.randn(1, 160, 2, 64)
    first = vidsparse.video_sparse_attention(q, q, q, grid=GRID, top_k=1, gate=q)
    monkeypatch.setattr(vidsparse.ops, "bind", lambda *_: pytest.fail("checked again"))
    again = vidsparse.video_sparse_attention(q, q, q, grid=GRID, top_k=1, gate=q)
    assert torch.equal(first, again)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (1, 2, 0, 3), (2, 1, 0, 3)])
def test_outputs_have_the_order_of_q_in_memory(order):
    shape = 2, 160, 3, 32
    dense = torch.randn([shape[i] for i in order]).permute([order.index(i) for i in range(4)])
    gapped = torch.randn(*shape[:3], 2 * shape[3])[..., : shape[3]]
    for q in (dense, gapped):
        for _ in range(2):  # checked, then remembered
            out = vidsparse.video_sparse_attention(q, q, q, grid=GRID, top_k=1)
            assert out.stride() == torch.empty_like(q).stride()


def test_function_transforms():
    """Refused, even of a remembered call; a tensor that left one is a tensor like any other."""
    q, k, v = (torch.randn(1, 160, 2, 64, requires_grad=i > 0) for i in range(3))

    def loss(x):
        return vidsparse.video_sparse_attention(x, k, v, grid=GRID, top_k=1).square().sum()

    expected = torch.autograd.grad(loss(q), (k, v))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(q)
    left = []
    torch.func.grad(lambda x: left.append(x) or x.sum())(q)
    for _ in range(2):
        got = torch.autograd.grad(loss(left[0]), (k, v))
        torch.testing.assert_close(got, expected, atol=0, rtol=0)
    k, v = k.detach(), v.detach()
    assert not loss(left[0]).requires_grad


class Number(torch.Tensor):
    """A subclass, which may be anybody's."""


@pytest.mark.parametrize(
    "kind",
    [torch.Tensor.clone, lambda x: torch.nn.Parameter(x, False), lambda x: x.as_subclass(Number)],
    ids=["tensor", "parameter", "subclass"],
)
def test_numbers_in_tensors_are_read_each_time(kind):
    q = torch.randn(1, 160, 2, 64)
    sparsity = kind(torch.tensor(0.9))
    kwargs = dict(grid=GRID, sparsity=sparsity, return_selection=True)
    for value in (0.9, 0.2):
        sparsity.data.fill_(value)
        _, mask = vidsparse.video_sparse_attention(q, q, q, **kwargs)
        kept = vidsparse.masks.to_bool(mask, 4).sum(-1)
        assert (kept == vidsparse.top_k_of(sparsity.item(), 4)).all()


def test_gradients_that_no_kernel_reads_are_copied(monkeypatch):
    """One that starts between two words, as a part of another tensor does, is dense already."""
    q, k, v = (torch.randn(1, 160, 2, 64, requires_grad=True) for _ in range(3))
    out = vidsparse.video_sparse_attention(q, k, v, grid=GRID, top_k=1)
    three = torch.randn(3, requires_grad=True)
    loss = torch.cat((three, out.flatten())).square().sum()
    expected = torch.autograd.grad(loss, (q, k, v), retain_graph=True)
    received = []
    kernels = calls.prepare(calls.Shape((1, *GRID), (1, *GRID), (4, 4, 4)), q, k, v, None).kernels
    backward = type(kernels).backward

    def spy(self, *arguments):
        received.append(arguments[12])
        backward(self, *arguments)

    monkeypatch.setattr(type(kernels), "backward", spy)
    monkeypatch.setattr(calls, "_readable", lambda _: False)
    got = torch.autograd.grad(loss, (q, k, v))
    (dout,) = received
    assert dout.is_contiguous() and dout.storage_offset() == 0
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(vidsparse.prepared.Memory, "CAPACITY", 3)
    calls._seen.clear()
    for tokens in range(1, 12):
        for again in (tokens, 1):
            q = torch.randn(1, again, 1, 32)
            vidsparse.video_sparse_attention(q, q, q, grid=(1, 1, again), top_k=1)
        assert len(calls._seen) <= 6
    alive = {shape[1] for key in (*calls._seen.recent, *calls._seen.older) for shape in key[3:4]}
    assert {1, 10, 11} <= alive  # those used last
