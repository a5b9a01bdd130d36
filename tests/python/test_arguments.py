"""Bad input is an exception that names the argument, what was expected and what came."""

import pickle

import pytest
import torch

import vidsparse
from vidsparse import Packed, Plain, Sequence, Video

GRID = (4, 4, 8)


def tensors(tokens=128, dtype=torch.bfloat16, head_dim=64):
    return [torch.randn(1, tokens, 2, head_dim).to(dtype) for _ in range(3)]


def with_(**changes):
    q, k, v = tensors()
    call = dict(q=q, k=k, v=v, grid=GRID, sparsity=0.5)
    call.update(changes)
    return call


def wrong_strides():
    return torch.randn(1, 128, 64, 2).bfloat16().transpose(2, 3)


REFUSED = {
    "q": [
        dict(q=torch.randn(128, 2, 64).bfloat16()),
        dict(grid=(4, 4, 9)),
        dict(q=torch.zeros(1, 128, 2, 64, dtype=torch.int32)),
        dict(q=wrong_strides()),
        dict(q=None),
        dict(q=3),
    ],
    "k": [
        dict(k=torch.randn(1, 127, 2, 64).bfloat16()),
        dict(k=torch.randn(1, 128, 2, 64)),
        dict(k=torch.randn(1, 128, 3, 64).bfloat16()),
        dict(k=torch.randn(2, 128, 2, 64).bfloat16()),
        dict(k=torch.empty(1, 128, 2, 64, dtype=torch.bfloat16, device="meta")),
        dict(k=None, v=None),
    ],
    "v": [dict(v=torch.randn(1, 128, 2, 32).bfloat16()), dict(v=None)],
    "gate": [
        dict(gate=torch.randn(1, 128, 2, 1).bfloat16()),
        dict(gate=torch.randn(1, 128, 2, 64)),
        dict(gate="learned"),
    ],
    "sparsity": [dict(sparsity=1.0), dict(sparsity=-0.1), dict(sparsity=None), dict(top_k=1)]
    + [dict(sparsity=x) for x in ("a", float("nan"), torch.tensor([0.5, 0.5]))],
    "top_k": [dict(sparsity=None, top_k=k) for k in (0, 3, 1.5, "3", float("nan"))],
    "tile": [dict(tile=x) for x in ((4, 4, 3), (4, 4), 0, "444", None, 4.0)],
    "grid": [
        dict(grid=None),
        dict(grid=(4, 4)),
        dict(grid=128),
        dict(grid=(4, 4, 8.0)),
        dict(grid=tuple(torch.tensor(GRID))),
        dict(query=Sequence(Video(4, 4, 8))),
    ],
    "sequence": [dict(grid=(-1, 4, 8)), dict(grid=None, query=Sequence(Packed(1, 128)))],
    "query": [dict(grid=None, query=(8, 8, 8))],
    "key": [dict(key=(8, 8, 8))],
    "prefix": [
        dict(grid=None, query=Sequence(Video(*GRID)), prefix=(3,)),
        dict(prefix=77),
        dict(prefix="a"),
    ],
    "kv_grid": [dict(kv_grid=GRID, key=Sequence(Video(*GRID))), dict(kv_grid=(4, 4))],
    "prefix_mode": [dict(prefix_mode="both")],
    "layout": [
        dict(layout="tiled"),
        dict(layout=torch.tensor([64, 64])),
        dict(grid=None, layout=[64] * 2),
        dict(grid=None, layout=torch.tensor(64)),
        dict(grid=None, layout=torch.ones(2)),
        dict(grid=None, layout=(torch.tensor([64, 64]), torch.ones(2))),
        dict(grid=None, layout=torch.ones(3, 2, dtype=torch.int32)),
    ],
    "scale": [dict(scale=float("inf")), dict(scale="auto")],
    "always": [
        dict(always=[[1]]),
        dict(always=torch.zeros(1, 1, 2, 1, dtype=torch.int64)),
    ],
    "query_lengths": [
        dict(query_lengths=torch.tensor([1, 2])),
        dict(query_lengths=[3]),
        dict(grid=(4, 4, 4), prefix=(64,), query_lengths=torch.tensor([1.0])),
    ],
    "backend": [dict(backend="warp")],
}


@pytest.mark.parametrize(
    ("argument", "changes"),
    [(name, changes) for name, list_ in REFUSED.items() for changes in list_],
    ids=lambda x: x if isinstance(x, str) else ",".join(x),
)
def test_refusals_name_the_argument(argument, changes):
    with pytest.raises(vidsparse.ArgumentError) as refusal:
        vidsparse.video_sparse_attention(**with_(**changes))
    assert refusal.value.argument == argument
    assert str(refusal.value).startswith(f"{argument}: expected ")
    assert ", got " in str(refusal.value)


def test_every_backend_gives_its_reason():
    q, k, v = tensors(dtype=torch.float64)
    with pytest.raises(vidsparse.UnsupportedError, match=r"cpu: dtype: f64 is computed by the ref"):
        vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5)
    q, k, v = tensors(head_dim=100)
    with pytest.raises(vidsparse.UnsupportedError, match="cpu: head_dim: expected a multiple"):
        vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5)


def test_backend_forced_by_environment(monkeypatch):
    q, k, v = tensors(dtype=torch.float64)
    monkeypatch.setenv("VIDSPARSE_BACKEND", "reference")
    assert vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5).shape == q.shape
    monkeypatch.setenv("VIDSPARSE_BACKEND", "none")
    with pytest.raises(vidsparse.ArgumentError, match="VIDSPARSE_BACKEND: expected one of"):
        vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5)


def test_masks_are_checked():
    q, k, v = tensors()
    for mask in (
        torch.ones(1, 2, 2, 3, dtype=torch.bool),
        torch.ones(2, 2),
        None,
        torch.zeros(1, 2, 2, 4, dtype=torch.int64),
        (torch.zeros(1, 2, 2, 5, dtype=torch.int32), torch.zeros(1, 2, 3, dtype=torch.int32)),
        (torch.zeros(1, 2, 2, 5, dtype=torch.int32), 3),
        (torch.zeros(1, 2, 2, 5, dtype=torch.int32),),
    ):
        with pytest.raises(vidsparse.ArgumentError, match="mask: expected"):
            vidsparse.block_sparse_attention(q, k, v, mask, grid=GRID)


def test_qkv_must_be_fused():
    with pytest.raises(vidsparse.ArgumentError, match="qkv: expected"):
        vidsparse.video_sparse_attention_qkvpacked(tensors()[0], grid=GRID, sparsity=0.5)
    with pytest.raises(vidsparse.ArgumentError, match="qkv: expected"):
        vidsparse.video_sparse_attention_qkvpacked(None, grid=GRID, sparsity=0.5)


def test_lengths_are_refused_by_the_callers_names():
    q, k, v = tensors()
    qkv = torch.stack((q, k, v), 2)
    text = dict(grid=(4, 4, 4), prefix=(64,))
    for lengths in (torch.ones(1), torch.ones(2, dtype=torch.int32), [3]):
        with pytest.raises(vidsparse.ArgumentError, match=r"^lengths: expected"):
            vidsparse.video_sparse_attention_qkvpacked(qkv, top_k=1, lengths=lengths, **text)
        with pytest.raises(vidsparse.ArgumentError, match=r"^key_lengths: expected"):
            vidsparse.pool(q, k, v, key_lengths=lengths, **text)
    sizes = torch.ones(2)
    qc, kc, _ = vidsparse.pool(q, k, grid=GRID)
    for call in (
        lambda: vidsparse.video_sparse_attention_qkvpacked(qkv, layout=sizes, top_k=1),
        lambda: vidsparse.block_sparse_attention(
            q, k, v, torch.ones(1, 2, 2, 2, dtype=torch.bool), layout=sizes
        ),
        lambda: vidsparse.pool(q, k, v, layout=sizes),
        lambda: vidsparse.select(qc, kc, layout=sizes, top_k=1),
    ):
        with pytest.raises(vidsparse.ArgumentError, match=r"^layout: expected"):
            call()


def test_life_goes_on_after_errors():
    q, k, v = tensors()
    for _ in range(3):
        with pytest.raises(vidsparse.ArgumentError):
            vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=2.0)
    assert vidsparse.video_sparse_attention(q, k, v, grid=GRID, sparsity=0.5).isfinite().all()


def test_stale_handle_is_an_error():
    if vidsparse.info().library is None:
        pytest.skip("needs the compiled library")
    with pytest.raises(RuntimeError, match="plan: expected a plan's handle, got -1"):
        torch.ops.vidsparse_native.plan_detail(-1)
    with pytest.raises(RuntimeError, match="call: expected a call's handle, got -1"):
        torch.ops.vidsparse_native.bound_forward(-1, 0, *tensors(), None)


@pytest.mark.gpu
def test_devices_are_not_mixed():
    q, k, v = tensors()
    with pytest.raises(vidsparse.ArgumentError, match="k: expected"):
        vidsparse.video_sparse_attention(q.cuda(), k, v, grid=GRID, sparsity=0.5)


@pytest.mark.gpu
def test_cpu_tensors_to_a_gpu_backend():
    with pytest.raises(vidsparse.UnsupportedError, match="sm90: "):
        vidsparse.video_sparse_attention(*tensors(), grid=GRID, sparsity=0.5, backend="sm90")


def test_sequences_refuse_nonsense():
    with pytest.raises(vidsparse.ArgumentError, match="sequence: expected Packed alone"):
        Sequence(Packed(2), Plain(3))
    with pytest.raises(vidsparse.ArgumentError, match="sequence: expected Plain, Video"):
        Sequence((4, 4, 4))


def test_errors_travel_between_processes():
    """A pool whose worker raises what its parent cannot load waits for ever."""
    for error, dtype, sparsity in (
        (vidsparse.ArgumentError, torch.float32, 2.0),
        (vidsparse.UnsupportedError, torch.float64, 0.5),
    ):
        q = tensors(dtype=dtype)[0]
        with pytest.raises(error) as raised:
            vidsparse.video_sparse_attention(q, q, q, grid=GRID, sparsity=sparsity)
        again = pickle.loads(pickle.dumps(raised.value))
        assert type(again) is type(raised.value) and str(again) == str(raised.value)
        assert vars(again) == vars(raised.value)


@pytest.mark.parametrize("make", [Plain, lambda n: Video(4, n, 8), lambda n: Packed(n)])
@pytest.mark.parametrize("value", ["8", 4.0, None, torch.tensor(4)])
def test_sides_are_integers(make, value):
    with pytest.raises(vidsparse.ArgumentError, match=r"^sequence: expected integers, got [^\n]+$"):
        Sequence(make(value))


def test_long_values_are_cut():
    with pytest.raises(vidsparse.ArgumentError, match=r"^sequence: [^\n]{100,300}$"):
        Sequence(Plain(torch.zeros(30, 30)))


def test_refusals_are_one_line():
    """They name the type of what came, where its contents would fill a page."""
    q, k, v = tensors()
    many = torch.randn(1, 128, 2, 64)
    chosen = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    lists = vidsparse.masks.indices_of_bool(chosen)
    for argument, call in (
        ("gate", lambda: vidsparse.video_sparse_attention(**with_(gate=many.numpy()))),
        ("scale", lambda: vidsparse.video_sparse_attention(**with_(scale=10**400))),
        ("mask", lambda: vidsparse.block_sparse_attention(q, k, v, chosen.tolist(), grid=GRID)),
        ("mask", lambda: vidsparse.block_sparse_attention(q, k, v, list(lists), grid=GRID)),
        ("layout", lambda: vidsparse.video_sparse_attention(**with_(grid=None, layout=many))),
    ):
        with pytest.raises(vidsparse.ArgumentError, match=rf"^{argument}: expected ") as refusal:
            call()
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


def test_masks_of_other_kinds():
    q, k, v = tensors()
    chosen = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    indices, counts = vidsparse.masks.indices_of_bool(chosen)
    for mask in (torch.tensor(True), torch.tensor(1), (indices, counts.to("meta"))):
        with pytest.raises(vidsparse.ArgumentError, match=r"^mask: expected"):
            vidsparse.block_sparse_attention(q, k, v, mask, grid=GRID)
    bitmap = vidsparse.masks.from_bool(chosen)
    for wrong in (None, chosen.float()):
        with pytest.raises(vidsparse.ArgumentError, match=r"^mask: expected"):
            vidsparse.masks.from_bool(wrong)
    for mask, tiles in ((chosen, 2), (bitmap, 129), (None, 2)):
        with pytest.raises(vidsparse.ArgumentError, match=r"^mask: expected a bitmap"):
            vidsparse.masks.to_bool(mask, tiles)
    layout = vidsparse.TileLayout(Sequence(Video(*GRID)))
    for distances in (1, (1, 1), "abc"):
        with pytest.raises(vidsparse.ArgumentError, match=r"^distances: expected"):
            vidsparse.masks.always_window(layout, distances)
    with pytest.raises(vidsparse.ArgumentError, match=r"^sequence: expected a Sequence"):
        vidsparse.TileLayout(GRID)


def test_autocast_leaves_integers_to_be_refused():
    q, k, v = tensors(dtype=torch.float32)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(vidsparse.ArgumentError, match=r"^q: expected a floating dtype"),
    ):
        vidsparse.video_sparse_attention(q.int(), k, v, grid=GRID, sparsity=0.5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("heads", 0), ("heads", 1.5), ("batch", "a"), ("batch", -1), ("head_dim", None),
     ("heads_kv", 3), ("dtype", "bf16"), ("dtype", torch.int32), ("device", "gpu"),
     ("device", 1.5)],
)  # fmt: skip
def test_plan_names_what_it_refuses(argument, value):
    for call in (vidsparse.plan, vidsparse.explain):
        with pytest.raises(vidsparse.ArgumentError, match=rf"^{argument}: expected ") as refusal:
            call(grid=GRID, **{"heads": 2, argument: value})
        assert refusal.value.argument == argument
