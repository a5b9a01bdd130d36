"""The op on random problems, forward and backward, over the device's chosen backend."""

import math

import pytest
import torch

import judging
import transcription
import vidsparse
from vidsparse import Packed, Plain, Sequence, Video, masks


def pick(*values):
    return values[int(torch.randint(len(values), ()))]


def number(low, high):
    return int(torch.randint(low, high + 1, ()))


def tensor(shape, dtype, device, grad=True):
    """Sometimes a view with strides of its own: a slice of a fused projection."""
    batch, tokens, heads, head_dim = shape
    if pick(True, False):
        wide = torch.randn(batch, tokens, 3, heads, head_dim, device=device).to(dtype)
        x = wide[:, :, 1]
    else:
        x = torch.randn(shape, device=device).to(dtype)
    return x.detach().requires_grad_(grad)


def random_segments():
    video = (number(1, 6), number(1, 9), number(1, 9))
    return pick([video], [number(1, 90), video], [video, number(1, 70)], [number(0, 3), video, 5])


def as_sequence(segments):
    return Sequence(*(Plain(s) if isinstance(s, int) else Video(*s) for s in segments))


def tokens_of(segments):
    return sum(s if isinstance(s, int) else math.prod(s) for s in segments)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attempt", range(6))
def test_random_problem(device, dtype, attempt, training):
    what = dict(grid=(4, 4, 4), head_dim=64, dtype=dtype, device=device)
    if not any(verdict.ok for verdict in vidsparse.explain(**what).values()):
        pytest.skip(f"no backend for {dtype} here")
    tile = pick((4, 4, 4), (4, 4, 4), (2, 4, 8), (1, 8, 8), (3, 8, 8))
    q_segments = random_segments()
    k_segments = pick(q_segments, random_segments())
    batch, groups, head_dim = number(1, 2), number(1, 2), pick(64, 128)
    heads = groups * number(1, 2)
    scale = pick(None, 0.3)
    mode = pick("exempt", "compete")
    q_tiles, q_plain = transcription.tiles_of_segments(q_segments, tile)
    k_tiles, k_plain = transcription.tiles_of_segments(k_segments, tile)
    q = tensor((batch, tokens_of(q_segments), heads, head_dim), dtype, device)
    k = tensor((batch, tokens_of(k_segments), groups, head_dim), dtype, device)
    v = tensor(k.shape, dtype, device)
    gate = pick(None, 1.0, 0.5, tensor(q.shape, dtype, device))
    top_k = number(1, len(k_tiles) - sum(k_plain))
    common = dict(
        query=as_sequence(q_segments), key=as_sequence(k_segments), tile=tile, scale=scale
    )
    seen = {}

    def run(q, k, v, gate):
        out, lse, seen["mask"] = vidsparse.video_sparse_attention(
            q, k, v, gate=gate, top_k=top_k, prefix_mode=mode, return_lse=True,
            return_selection=True, **common,
        )  # fmt: skip
        return out, lse

    def attend(q, k, v, gate):
        return vidsparse.block_sparse_attention(
            q, k, v, selected.to(device), return_lse=True, **common
        )

    with torch.set_grad_enabled(training):
        run(q, k, v, gate)
        selected = masks.to_bool(seen["mask"], len(k_tiles)).cpu()
        check_rows(q, k, q_tiles, q_plain, k_tiles, k_plain, top_k, mode, scale, selected)
        judging.check_call(q, k, v, gate, scale, q_tiles, k_tiles, selected, run)
        judging.check_call(q, k, v, None, scale, q_tiles, k_tiles, selected, attend)


def check_rows(q, k, q_tiles, q_plain, k_tiles, k_plain, top_k, mode, scale, selected):
    """The selection of every query row, by its kind and the mode."""
    number_scale = q.shape[3] ** -0.5 if scale is None else scale
    args = q.detach().cpu(), k.detach().cpu(), q_tiles, k_tiles, number_scale
    scores, tau = transcription.scores_of(*args), judging.tau_of(*args)
    video_rows, plain = ~torch.tensor(q_plain), torch.tensor(k_plain)
    assert selected[:, :, ~video_rows].all()
    chosen, scores, tau = (x[:, :, video_rows] for x in (selected, scores, tau))
    if mode == "exempt":
        assert chosen[..., plain].all()
        judging.check_selection(chosen & ~plain, scores, tau, (~plain).tolist(), top_k)
    else:
        full = [True] * len(k_tiles)
        judging.check_selection(chosen, scores, tau, full, top_k + sum(k_plain))


def test_packed_tiles_with_poisoned_pads(device):
    sizes = torch.randint(0, 65, (7,), dtype=torch.int32)
    sizes[2], sizes[3] = 0, 64
    top_k, dtype = number(1, 6), torch.float32 if device.type == "cpu" else torch.bfloat16
    tiles = transcription.tiles_of_packed(sizes.tolist())
    valid = transcription.tile_of(tiles, 7 * 64) >= 0
    clean = [torch.randn(2, 7 * 64, 3, 64).to(dtype) for _ in range(4)]
    dirty = []
    for x in clean:
        x = x.clone()
        x[:, ~valid] = math.nan
        dirty.append(x.to(device).requires_grad_())
    out, lse, mask = vidsparse.video_sparse_attention(
        *dirty[:3], gate=dirty[3], layout=sizes.to(device), top_k=top_k, return_lse=True,
        return_selection=True,
    )  # fmt: skip
    selected = masks.to_bool(mask, 7).cpu()
    full = [n > 0 for n in sizes.tolist()]
    assert (selected.sum(-1) == min(top_k, sum(full))).all()
    assert not selected[..., ~torch.tensor(full)].any()
    assert (out[:, ~valid] == 0).all() and (lse[:, :, ~valid] == -math.inf).all()
    dout = torch.randn_like(out)
    got = torch.autograd.grad(out, dirty, dout)
    for gradient in got:
        assert (gradient[:, ~valid] == 0).all()
    answers = []
    for kind in (torch.float64, dtype):
        copies = [x.clone().requires_grad_() for x in clean]
        exact, _ = transcription.vsa(*copies[:3], tiles, tiles, selected, copies[3], dtype=kind)
        exact = exact * valid[:, None, None]
        answers.append((exact, *torch.autograd.grad(exact, copies, dout.cpu().to(kind))))
    for name, result, exact, plain in zip(
        ("out", "dq", "dk", "dv", "dgate"), (out, *got), *answers
    ):
        judging.check(name, result, exact, plain, dtype)


def test_run_time_lengths_of_plain_segments(device):
    sequence = Sequence(Plain(100), Video(4, 4, 6))
    lengths = torch.tensor([[37], [100]], dtype=torch.int32)
    dtype = torch.bfloat16
    q, k, v = (torch.randn(2, 196, 2, 64).to(device, dtype) for _ in range(3))
    out = vidsparse.video_sparse_attention(
        q, k, v, query=sequence, top_k=1, query_lengths=lengths.to(device),
        key_lengths=lengths.to(device),
    )  # fmt: skip
    for entry, length in enumerate((37, 100)):
        short = [torch.cat((x[entry, :length], x[entry, 100:]))[None] for x in (q, k, v)]
        alone = vidsparse.video_sparse_attention(*short, grid=(4, 4, 6), prefix=(length,), top_k=1)
        expected = torch.cat((alone[0, :length], alone[0, length:]))
        got = torch.cat((out[entry, :length], out[entry, 100:]))
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
        assert (out[entry, length:100] == 0).all()


def test_sparsity_zero_is_dense_attention(device):
    q, k, v = (torch.randn(2, 5 * 6 * 7, 4, 64, device=device).bfloat16() for _ in range(3))
    out = vidsparse.video_sparse_attention(q, k, v, grid=(5, 6, 7), sparsity=0.0)
    heads_first = [x.transpose(1, 2).float() for x in (q, k, v)]
    dense = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    torch.testing.assert_close(out.float(), dense, atol=2e-2, rtol=2e-2)


def test_fused_qkv_equals_three_tensors(device):
    qkv = torch.randn(2, 5 * 6 * 7, 3, 2, 64, device=device).bfloat16().requires_grad_()
    gate = torch.randn(2, 5 * 6 * 7, 2, 64, device=device).bfloat16().requires_grad_()
    kwargs = dict(grid=(5, 6, 7), sparsity=0.7, return_lse=True, return_selection=True)
    fused = vidsparse.video_sparse_attention_qkvpacked(qkv, gate=gate, **kwargs)
    apart = vidsparse.video_sparse_attention(*qkv.unbind(2), gate=gate, **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(fused, apart))
    dout = torch.randn_like(fused[0])
    for a, b in zip(*(torch.autograd.grad(x[0], (qkv, gate), dout) for x in (fused, apart))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["expanded", "of every head", "heads first", "unaligned"])
def test_any_strides_of_incoming_gradients(device, form):
    shape = (2, 5 * 6 * 7, 2, 64)
    leaves = [torch.randn(shape, device=device).bfloat16().requires_grad_() for _ in range(3)]
    out = vidsparse.video_sparse_attention(*leaves, grid=(5, 6, 7), top_k=3)
    made = lambda *sizes: torch.randn(sizes, device=device).bfloat16()  # noqa: E731
    tokens = shape[1]
    dout = {
        "expanded": made(1).expand(shape),
        "of every head": made(2, tokens, 1, 64).expand(shape),
        "heads first": made(2, 2, tokens, 64).transpose(1, 2),
        "unaligned": made(2, tokens, 2, 67)[..., 3:],
    }[form]
    got = torch.autograd.grad(out, leaves, dout, retain_graph=True)
    expected = torch.autograd.grad(out, leaves, dout.clone(memory_format=torch.contiguous_format))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_always_selected_tiles(device):
    q, k = (torch.randn(1, 6 * 8 * 8, 2, 64, device=device).bfloat16() for _ in range(2))
    layout = vidsparse.TileLayout(Sequence.grid((6, 8, 8)))
    kwargs = dict(grid=(6, 8, 8), top_k=1, return_selection=True)
    _, plain = vidsparse.video_sparse_attention(q, k, k, **kwargs)
    base = masks.to_bool(plain, 8)
    for always in (
        masks.always_own_tile(layout, device),
        masks.always_first_frame(layout, layout, device),
        masks.always_window(layout, (0, 1, 0), device),
    ):
        _, mask = vidsparse.video_sparse_attention(q, k, k, always=always, **kwargs)
        assert torch.equal(masks.to_bool(mask, 8), base | masks.to_bool(always, 8))


def test_bits_beyond_the_tiles_are_ignored(device):
    q = torch.randn(1, 6 * 8 * 8, 2, 64, device=device).bfloat16()
    always = torch.full((1, 1, 8, 2), -1, device=device)
    out, mask = vidsparse.video_sparse_attention(
        q, q, q, grid=(6, 8, 8), top_k=1, always=always, return_selection=True
    )
    assert (mask == torch.tensor([255, 0], device=device)).all()
    dense = vidsparse.block_sparse_attention(q, q, q, always.expand(1, 2, -1, -1), grid=(6, 8, 8))
    assert torch.equal(out, dense)


def test_selection_of_own_pooled_tensors(device):
    qc, kc, vc = (torch.randn(2, 3, n, 64, device=device) for n in (5, 9, 9))
    query, key = Sequence(Video(20, 4, 4)), Sequence(Video(4, 4, 36))
    mask, oc = vidsparse.select(qc, kc, vc, query=query, key=key, top_k=4)
    scores = qc.double() @ kc.double().transpose(-1, -2) / 8
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(4).indices, True)
    assert torch.equal(masks.to_bool(mask, 9), best)
    expected = torch.softmax(scores, -1) @ vc.double()
    torch.testing.assert_close(oc.double(), expected, atol=1e-4, rtol=1e-4)


def test_scale_may_be_an_integer(device):
    q, k = (torch.randn(1, 2 * 64, 2, 64, device=device).bfloat16() / 4 for _ in range(2))
    kwargs = dict(grid=(8, 4, 4), top_k=1, gate=1)
    expected = vidsparse.video_sparse_attention(q, k, k, scale=1.0, **kwargs)
    assert torch.equal(vidsparse.video_sparse_attention(q, k, k, scale=1, **kwargs), expected)


def test_pool_keeps_float32(device):
    q = torch.randn(2, 5 * 5 * 5, 2, 64, device=device).bfloat16()
    qc, kc, vc = vidsparse.pool(q, q, q, grid=(5, 5, 5))
    assert qc.dtype == torch.float32 and torch.equal(qc, kc) and torch.equal(qc, vc)
    tiles = transcription.tiles_of_video((5, 5, 5), (4, 4, 4))
    exact = transcription.pooled(q.cpu(), tiles, torch.float64)
    bound = 1e-5 * exact.abs().amax(-1, keepdim=True)
    assert ((qc.cpu().double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("gate", ["none", "number", "tensor"])
@pytest.mark.parametrize("batch, grid", [(0, (2, 4, 4)), (2, (0, 4, 4)), (0, (0, 4, 4))])
def test_empty_batch_and_grid(device, batch, grid, gate):
    shape = (batch, math.prod(grid), 2, 64)
    leaves = [torch.randn(shape, device=device).bfloat16().requires_grad_() for _ in range(4)]
    given = {"none": None, "number": 0.5, "tensor": leaves[3]}[gate]
    out, lse = vidsparse.video_sparse_attention(
        *leaves[:3], grid=grid, sparsity=0.5, gate=given, return_lse=True
    )
    assert out.shape == shape and lse.shape == (batch, 2, shape[1])
    leaves = leaves if gate == "tensor" else leaves[:3]
    gradients = torch.autograd.grad((out.sum(), lse.sum()), leaves)
    assert all(got.shape == shape for got in gradients)


def test_keys_of_an_empty_grid(device):
    """Nothing to attend: zeros, and zero gradients."""
    q = torch.randn(2, 32, 2, 64, device=device).bfloat16().requires_grad_()
    k, v = (torch.randn(2, 0, 2, 64, device=device).bfloat16().requires_grad_() for _ in range(2))
    out, lse = vidsparse.video_sparse_attention(
        q, k, v, grid=(2, 4, 4), kv_grid=(0, 4, 4), sparsity=0.5, gate=1.0, return_lse=True
    )
    assert (out == 0).all() and (lse == -math.inf).all()
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    assert (dq == 0).all() and dk.shape == dv.shape == k.shape


def test_packed_query_against_raster_key_is_by_sequences(device):
    q = torch.randn(1, 128, 1, 64, device=device).bfloat16()
    k = torch.randn(1, 64, 1, 64, device=device).bfloat16()
    sequences = dict(query=Sequence(Packed(2)), key=Sequence(Video(4, 4, 4)))
    out = vidsparse.video_sparse_attention(q, k, k, top_k=1, **sequences)
    same = vidsparse.video_sparse_attention(
        q, k, k, query=Sequence(Video(8, 4, 4)), key=Sequence(Video(4, 4, 4)), top_k=1
    )
    torch.testing.assert_close(out, same, atol=2e-2, rtol=2e-2)
