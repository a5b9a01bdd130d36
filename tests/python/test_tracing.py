"""What torch does to the op: compile, fake tensors, opcheck, gradcheck, autocast, checkpointing."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import vidsparse
from vidsparse import Plain, Sequence, Video

GRID = (5, 6, 7)
TOKENS = 5 * 6 * 7


def tensors(device="cpu", dtype=torch.float32, batch=2, count=4):
    shape = (batch, TOKENS, 2, 64)
    return [
        torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(count)
    ]


def layer(q, k, v, gate, sparsity):
    """Around the op only what is exact in every dtype: a compiler rounds fewer times."""
    out, lse = vidsparse.video_sparse_attention(
        q * 0.5, k, v, grid=GRID, sparsity=sparsity, gate=gate, return_lse=True
    )
    return out * -2, lse


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_with_changing_sparsity(device, compiler):
    inputs = tensors(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    seen = []
    for sparsity in (0.9, 0.8, 0.7, 0.55, 0.2):
        got, expected = compiled(*inputs, sparsity), layer(*inputs, sparsity)
        torch.testing.assert_close(got, expected)
        seeds = [torch.randn_like(x) for x in got]
        torch.testing.assert_close(
            torch.autograd.grad(got, inputs, seeds), torch.autograd.grad(expected, inputs, seeds)
        )
        seen.append(graphs())
    assert seen == [1, 2, 2, 2, 2]


def test_compile_with_changing_top_k_and_lengths(device):
    def attend(q, top_k):
        grid = (q.shape[1] // 16, 4, 4)
        return vidsparse.video_sparse_attention(q, q, q, grid=grid, top_k=top_k)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    seen = []
    for frames, top_k in ((16, 1), (20, 2), (36, 3), (64, 4)):
        q = torch.randn(1, frames * 16, 2, 64, device=device).bfloat16()
        torch.testing.assert_close(compiled(q, top_k), attend(q, top_k))
        seen.append(graphs())
    assert seen == [1, 2, 2, 2]


def test_compile_of_the_stages(device):
    def stages(q, k, v):
        qc, kc, vc = vidsparse.pool(q, k, v, grid=GRID)
        mask, oc = vidsparse.select(qc, kc, vc, grid=GRID, sparsity=0.5)
        return vidsparse.block_sparse_attention(q, k, v, mask, grid=GRID), oc

    inputs = [x.detach().bfloat16() for x in tensors(device, count=3)]
    compiled = torch.compile(stages, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), stages(*inputs))


def test_compile_of_select_on_transposed_means(device):
    """Results are dense, whatever the strides of pooled tensors."""

    def select(qc, kc):
        mask, oc = vidsparse.select(qc, kc, kc, grid=GRID, top_k=2)
        return mask, oc.transpose(1, 2) + 1

    qc, kc = (torch.randn(2, 8, 2, 64, device=device).transpose(1, 2) for _ in range(2))
    expected = select(qc, kc)
    got = torch.compile(select, fullgraph=True, backend="inductor")(qc, kc)
    torch.testing.assert_close(got, expected)
    with FakeTensorMode() as mode:
        fake = vidsparse.select(*map(mode.from_tensor, (qc, kc, kc)), grid=GRID, top_k=2)
    real = vidsparse.select(qc, kc, kc, grid=GRID, top_k=2)
    assert [x.stride() for x in fake] == [x.stride() for x in real]


def test_compile_of_fused_qkv(device):
    def attend(qkv):
        return vidsparse.video_sparse_attention_qkvpacked(qkv, grid=GRID, top_k=2, gate=0.5)

    qkv = torch.randn(1, TOKENS, 3, 2, 64, device=device).bfloat16().requires_grad_()
    got, expected = torch.compile(attend, fullgraph=True, backend="aot_eager")(qkv), attend(qkv)
    torch.testing.assert_close(got, expected)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, qkv, seed), torch.autograd.grad(expected, qkv, seed)
    )


def operator_arguments(gate, **changes):
    q, k, v, tensor_gate = tensors()
    code = Sequence.grid(GRID).encode()
    arguments = dict(
        q=q, k=k, v=v, gate=tensor_gate if gate == "tensor" else None, query_lengths=None,
        key_lengths=None, mask=None, query=code, key=code, tile=[4, 4, 4], scale=None,
        gate_value=1.0 if gate == "scalar" else None, backend=None, always=None,
        sparsity=torch.tensor(0.5, dtype=torch.float64), top_k=None, compete=False, want_lse=True,
        want_mask=True, keep=True,
    )  # fmt: skip
    arguments.update(changes)
    return tuple(arguments.values())


@pytest.mark.parametrize("gate", ["none", "scalar", "tensor"])
def test_opcheck(gate):
    torch.library.opcheck(torch.ops.vidsparse.forward.default, operator_arguments(gate))


def test_opcheck_of_inference_and_given_masks():
    forward = torch.ops.vidsparse.forward.default
    with torch.no_grad():
        arguments = operator_arguments("none", keep=False, want_lse=False, want_mask=False)
        arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(forward, arguments)
    mask = torch.full((2, 2, 8, 2), 5, dtype=torch.int64) * torch.tensor([1, 0])
    torch.library.opcheck(forward, operator_arguments("none", mask=mask, sparsity=None))


def test_opcheck_of_the_stages():
    q, k, v, _ = (x.detach() for x in tensors())
    code = Sequence.grid(GRID).encode()
    shape = (None, None, code, code, [4, 4, 4])
    torch.library.opcheck(torch.ops.vidsparse.pool.default, (q, k, v, *shape, None))
    qc, kc, vc = vidsparse.pool(q, k, v, grid=GRID)
    for values in (None, vc):
        rest = (None, None, None, None, 3, False)
        torch.library.opcheck(torch.ops.vidsparse.select.default, (qc, kc, values, *shape, *rest))


def test_fake_tensors_have_the_real_shapes():
    kwargs = dict(grid=GRID, top_k=2, return_lse=True, return_selection=True)
    real = tensors()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in real]
        shapes = vidsparse.video_sparse_attention(*fake[:3], gate=fake[3], **kwargs)
    results = vidsparse.video_sparse_attention(*real[:3], gate=real[3], **kwargs)
    for a, b in zip(shapes, results, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_compile_refuses_a_wrong_grid():
    q = torch.randn(1, TOKENS + 1, 1, 64)

    def attend(q):
        return vidsparse.video_sparse_attention(q, q, q, grid=GRID, top_k=1)

    with pytest.raises(Exception, match=f"q: expected .*{TOKENS}"):
        torch.compile(attend, fullgraph=True, backend="eager")(q)


@pytest.mark.parametrize("gate", ["none", "scalar", "tensor"])
@pytest.mark.parametrize("mode", ["exempt", "compete"])
def test_gradcheck_through_the_reference(gate, mode):
    sequence = Sequence(Plain(5), Video(1, 8, 16))
    shape = (1, 133, 1, 4)
    q, k, v, g = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(4))
    gate = {"none": None, "scalar": 0.7, "tensor": g}[gate]
    inputs = (q, k, v, g) if gate is g else (q, k, v)

    def attend(q, k, v, gate=gate):
        return vidsparse.video_sparse_attention(
            q, k, v, query=sequence, tile=(1, 8, 8), top_k=1, gate=gate, prefix_mode=mode,
            return_lse=True, backend="reference",
        )  # fmt: skip

    # A step of 1e-6 moves no score across another: selections stay.
    assert torch.autograd.gradcheck(attend, inputs, eps=1e-6, atol=1e-5, fast_mode=True)


def test_second_derivatives_are_refused():
    q, k, v, gate = tensors()
    out, _ = layer(q, k, v, gate, 0.5)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()
    inputs = q, *_ = tensors()
    out = torch.ops.vidsparse.forward(*inputs, *operator_arguments("tensor")[4:])[0]
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        dq.sum().backward()


def test_forward_mode_derivatives_are_refused():
    q, k, v, _ = (x.detach() for x in tensors())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, q)
        with pytest.raises(RuntimeError, match="jvp"):
            vidsparse.video_sparse_attention(dual, k, v, grid=GRID, top_k=1)


def test_function_transforms_are_refused():
    def total(q):
        return vidsparse.video_sparse_attention(q, q, q, grid=GRID, top_k=1).sum()

    q = tensors(count=1)[0].detach()
    with pytest.raises(RuntimeError):
        torch.func.grad(total)(q)
    with pytest.raises(RuntimeError):
        torch.vmap(total)(q[None])


def test_export():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, gate):
            return layer(q, k, v, gate, 0.5)[0]

    inputs = tuple(x.detach() for x in tensors())
    exported = torch.export.export(Layer(), inputs).module()
    torch.testing.assert_close(exported(*inputs), Layer()(*inputs))


def test_jit_trace():
    inputs = tensors()
    traced = torch.jit.trace(lambda *x: layer(*x, 0.5)[0], inputs, check_trace=False)
    assert "vidsparse::forward" in str(traced.graph)
    again = tensors()
    torch.testing.assert_close(traced(*again), layer(*again, 0.5)[0])


def test_autocast(device):
    q, k, v, gate = tensors(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out, _ = layer(q, k, v, gate, 0.5)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32 and gate.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    inputs = tensors()
    out, _ = torch.utils.checkpoint.checkpoint(layer, *inputs, 0.5, use_reentrant=reentrant)
    expected, _ = layer(*inputs, 0.5)
    got = torch.autograd.grad(out.sum(), inputs) if not reentrant else None
    if reentrant:
        out.sum().backward()
        got = tuple(x.grad for x in inputs)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), inputs))


def test_same_bits_every_time_and_for_any_threads():
    inputs = tensors(dtype=torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, threads):
            torch.set_num_threads(count)
            out, lse = layer(*inputs, 0.6)
            results.append((out, lse, *torch.autograd.grad((out.sum(), lse.sum()), inputs)))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


def test_gradients_of_part_of_the_inputs_and_of_lse_alone():
    q, k, v, gate = tensors()
    _, lse = layer(q.detach(), k, v, gate, 0.5)
    dk, dgate = torch.autograd.grad(lse.sum(), (k, gate))
    assert dk.abs().sum() > 0 and (dgate == 0).all()
    out, _ = layer(q.detach(), k.detach(), v.detach(), gate, 0.5)
    (dgate,) = torch.autograd.grad(out.sum(), gate)
    assert dgate.abs().sum() > 0


def test_inference_keeps_nothing_for_backward():
    q, k, v, gate = tensors()
    with torch.no_grad():
        assert vidsparse.video_sparse_attention(q, k, v, grid=GRID, top_k=1).grad_fn is None
    with torch.inference_mode():
        out = vidsparse.video_sparse_attention(q, k, v, gate=gate, grid=GRID, top_k=1)
        assert out.is_inference()
