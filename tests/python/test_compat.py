"""The drop-in for fastvideo_kernel against a plain transcription of the op and its layout."""

import importlib
import math
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import judging
import transcription
import vidsparse.compat
from vidsparse.compat import fastvideo_kernel as kernel
from vidsparse.compat.triton_kernels import index

GRID = (5, 6, 9)
TOKENS = math.prod(GRID)


@pytest.fixture
def installed():
    vidsparse.compat.install()
    yield
    vidsparse.compat.uninstall()


def packed(x, metadata, fill):
    """Raster [B, S, H, D] -> packed [B, tiles*slots, H, D], pads `fill`, as hosts do it."""
    slots = metadata["max_block_size"] * math.prod(metadata["num_tiles"])
    out = x.new_full((x.shape[0], slots, *x.shape[2:]), fill)
    out[:, metadata["non_pad_index"]] = x[:, metadata["tile_partition_indices"]]
    return out


def unpacked(x, metadata):
    return x[:, metadata["non_pad_index"]][:, metadata["reverse_tile_partition_indices"]]


@pytest.mark.parametrize("grid", [GRID, (4, 8, 4), (1, 7, 13), (9, 3, 2)])
@pytest.mark.parametrize("tile", [(4, 4, 4), (1, 8, 8), (4, 4, 8)])
def test_metadata(grid, tile):
    metadata = kernel.build_vsa_metadata(grid, tile, "cpu")
    tiles = transcription.tiles_of_video(grid, tile)
    slots = math.prod(tile)
    assert metadata["tile_partition_indices"].tolist() == [p for t in tiles for p in t]
    assert metadata["variable_block_sizes"].tolist() == [len(t) for t in tiles]
    assert metadata["num_tiles"] == tuple(-(-n // t) for n, t in zip(grid, tile))
    assert metadata["max_block_size"] == slots
    expected = [i * slots + s for i, t in enumerate(tiles) for s in range(len(t))]
    assert metadata["non_pad_index"].tolist() == expected
    forth = metadata["tile_partition_indices"]
    back = metadata["reverse_tile_partition_indices"]
    assert torch.equal(forth[back], torch.arange(math.prod(grid)))


def test_metadata_of_fake_tensors_is_not_kept():
    grid, tile = (3, 5, 11), (4, 4, 4)
    with FakeTensorMode():
        fake = kernel.construct_variable_block_sizes(grid, (1, 2, 3), "cpu", tile)
    sizes = kernel.construct_variable_block_sizes(grid, (1, 2, 3), "cpu", tile)
    assert fake.shape == sizes.shape and fake.dtype == sizes.dtype
    assert sizes.tolist() == [len(t) for t in transcription.tiles_of_video(grid, tile)]


def test_metadata_is_made_once(device):
    """Hosts ask for it in every denoising step; and it serves training after inference."""
    with torch.inference_mode():
        first = kernel.build_vsa_metadata((3, 7, 10), device=device)
    again = kernel.build_vsa_metadata([3, 7, 10], [4, 4, 4], device.type)
    for name in ("tile_partition_indices", "reverse_tile_partition_indices",
                 "variable_block_sizes", "non_pad_index"):  # fmt: skip
        assert again[name] is first[name] and not first[name].is_inference()
    x = torch.randn(1, 210, 1, 64, device=device, requires_grad=True)
    x[:, first["tile_partition_indices"]].sum().backward()
    assert x.grad.eq(1).all()


@pytest.mark.parametrize("argument", ["dit_seq_shape", "tile"])
@pytest.mark.parametrize("wrong", [(4, 4), 3, None, (4.0, 4, 4)])
def test_wrong_shapes_are_named(argument, wrong):
    shape, tile = (wrong, (4, 4, 4)) if argument == "dit_seq_shape" else ((5, 5, 5), wrong)
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        kernel.build_vsa_metadata(shape, tile, "cpu")


@pytest.mark.parametrize("weight", ["none", "tensor"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("block_size", [64, 4, (4, 4, 4)])
def test_video_sparse_attn(device, weight, layout, block_size):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    metadata = kernel.build_vsa_metadata(GRID, (4, 4, 4), device)
    sizes = metadata["variable_block_sizes"]
    tiles = transcription.tiles_of_video(GRID, (4, 4, 4))
    raster = [torch.randn(2, TOKENS, 2, 64).to(device, dtype) for _ in range(4)]
    topk = 5
    inputs = [packed(x, metadata, math.nan) for x in raster]
    if layout == "bhsd":
        inputs = [x.transpose(1, 2).contiguous() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    gate = inputs[3] if weight == "tensor" else None
    call = kernel.video_sparse_attn if layout == "bhsd" else kernel.video_sparse_attn_bshd
    out = call(*inputs[:3], sizes, sizes, topk, block_size, gate)
    assert out.shape == inputs[0].shape and out.is_contiguous()
    leaves = inputs if weight == "tensor" else inputs[:3]
    dout = torch.randn_like(out)
    results = [out, *torch.autograd.grad(out, leaves, dout)]
    if layout == "bhsd":
        results = [x.transpose(1, 2) for x in results]
        dout = dout.transpose(1, 2)
    results = [unpacked(x, metadata) for x in results]

    # The selection, from float64 scores: equal unless two scores almost tie.
    _, mask = vidsparse.video_sparse_attention(
        *raster[:3], grid=GRID, top_k=topk, return_selection=True
    )
    selected = vidsparse.masks.to_bool(mask, len(tiles)).cpu()
    q, k, v, g = (x.cpu() for x in raster)
    scores = transcription.scores_of(q, k, tiles, tiles, 64**-0.5)
    tau = judging.tau_of(q, k, tiles, tiles, 64**-0.5)
    judging.check_selection(selected, scores, tau, [True] * len(tiles), topk)
    answers = []
    for kind in (torch.float64, dtype):
        copies = [x.clone().requires_grad_() for x in (q, k, v, g)]
        exact, _ = transcription.vsa(
            *copies[:3], tiles, tiles, selected, copies[3] if gate is not None else 1.0, dtype=kind
        )
        seed = unpacked(dout, metadata).cpu().to(kind)
        answers.append((exact, *torch.autograd.grad(exact, copies[: len(leaves)], seed)))
    for name, result, exact, plain in zip(("out", "dq", "dk", "dv", "dweight"), results, *answers):
        judging.check(name, result, exact, plain, dtype)


def test_topk_beyond_the_tiles_keeps_all(device):
    x = torch.randn(1, 2, 128, 64, device=device).bfloat16()
    sizes = torch.tensor([64, 64], device=device)
    out = kernel.video_sparse_attn(x, x, x, sizes, sizes, 9, compress_attn_weight=x * 0)
    dense = torch.nn.functional.scaled_dot_product_attention(*[x.float()] * 3)
    torch.testing.assert_close(out.float(), dense, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("form", ["map", "map without batch", "indices"])
def test_block_sparse_attn(device, form):
    """Cross attention, ragged keys, an empty row, duplicates and out-of-range indices."""
    sizes = torch.tensor([64, 17, 0, 64, 30], dtype=torch.int64)
    tiles = transcription.tiles_of_packed(sizes.tolist())
    q_tiles = transcription.tiles_of_packed([64] * 3)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q = torch.randn(2, 2, 3 * 64, 64).to(dtype)
    k, v = (torch.randn(2, 2, 5 * 64, 64).to(dtype) for _ in range(2))
    selected = torch.rand(2, 2, 3, 5) < 0.5
    if form == "map without batch":
        selected = selected[:1].expand(2, -1, -1, -1)
    selected = selected.clone()
    selected[:, 1, 2] = False
    on_device = [x.to(device) for x in (q, k, v)]
    if form == "indices":
        idx, num = index.map_to_index(selected)
        idx = torch.cat((torch.full_like(idx[..., :2], 99), idx[..., :1], idx), -1)
        args = idx.to(device), (num + 3 * (num > 0)).to(device), sizes.to(device)
        out, m = kernel.block_sparse_attn_from_indices(*on_device, *args)
    else:
        given = selected[0] if form == "map without batch" else selected
        out, m = kernel.block_sparse_attn(*on_device, given.to(device), sizes.to(device))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    answers = []
    for kind in (torch.float64, dtype):
        exact, lse = transcription.vsa(q, k, v, q_tiles, tiles, selected, dtype=kind)
        answers.append((exact.transpose(1, 2), lse / math.log(2)))
    judging.check("o", out, answers[0][0], answers[1][0], dtype)
    judging.check("M", m, answers[0][1], answers[1][1], torch.float32)


def test_index_lists(device):
    block_map = torch.rand(2, 3, 5, 7, device=device) < 0.4
    idx, num = index.map_to_index(block_map)
    assert idx.dtype == num.dtype == torch.int32
    for row, count, bits in zip(idx.view(-1, 7), num.view(-1), block_map.view(-1, 7)):
        assert row.tolist() == bits.nonzero().flatten().tolist() + [-1] * (7 - int(count))
    back, back_num = index.invert_indices(idx, num, 7)
    assert back.shape == (2, 3, 7, 5)
    expected = index.map_to_index(block_map.transpose(2, 3))
    assert torch.equal(back, expected[0]) and torch.equal(back_num, expected[1])
    chosen = torch.rand(2, 3, 5, 7, device=device).topk(3).indices
    for transpose in (False, True):
        result = index.topk_index_to_map(chosen, 7, transpose)
        assert result.shape == (2, 3, 5, 7) and result.sum(-1).eq(3).all()
        assert result.gather(3, chosen).all()
        assert result.stride(2 if transpose else 3) == 1


def test_install_serves_hosts(installed):
    module = importlib.import_module("fastvideo_kernel")
    assert module is kernel
    assert importlib.import_module("fastvideo_kernel.triton_kernels.index") is index
    assert importlib.util.find_spec("fastvideo_kernel") is not None
    from vsa import video_sparse_attn

    x = torch.randn(1, 2, 128, 64).bfloat16()
    sizes = torch.tensor([64, 40])
    old = video_sparse_attn(x, x, x, sizes, 1, 64, x)
    assert torch.equal(old, kernel.video_sparse_attn(x, x, x, sizes, sizes, 1, 64, x))


def test_names_we_lack(installed):
    if importlib.machinery.PathFinder.find_spec("fastvideo_kernel") is not None:
        pytest.skip("the real package is installed")
    with pytest.raises(AttributeError, match=r"vidsparse .* no 'sliding_tile_attention'"):
        _ = importlib.import_module("fastvideo_kernel").sliding_tile_attention
    assert not hasattr(kernel, "moba_attn_varlen")


def test_names_of_the_real_package(tmp_path, monkeypatch):
    """A stand-in for the real package, of the same shape: names bound to submodules of the same
    name, and lazy imports inside."""
    root = tmp_path / "fastvideo_kernel"
    (root / "triton_kernels").mkdir(parents=True)
    (root / "__init__.py").write_text(
        "from fastvideo_kernel.block_sparse_attn import block_sparse_attn\n"
        "from .st_attn import sliding_tile_attention\n"
    )
    (root / "block_sparse_attn.py").write_text("def block_sparse_attn(): return 'theirs'\n")
    (root / "st_attn.py").write_text("def sliding_tile_attention(): return 'tiles'\n")
    (root / "triton_kernels" / "__init__.py").write_text("")
    (root / "triton_kernels" / "other.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kernel, "_loaded", None)
    vidsparse.compat.install()
    try:
        module = importlib.import_module("fastvideo_kernel")
        assert module.sliding_tile_attention() == "tiles"
        assert module.block_sparse_attn is kernel.__dict__["block_sparse_attn"]
        assert importlib.import_module("fastvideo_kernel.triton_kernels.other").value == 3
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = module.no_such_name
    finally:
        vidsparse.compat.uninstall()
        monkeypatch.undo()
        vidsparse.compat.fastvideo_kernel.find_original()
        for name in [x for x in sys.modules if x.startswith("fastvideo_kernel")]:
            del sys.modules[name]


def test_wrong_sizes_are_named():
    x = torch.randn(1, 2, 128, 64).bfloat16()
    sizes = torch.tensor([64, 64, 64])
    with pytest.raises(ValueError, match="variable_block_sizes: expected"):
        kernel.video_sparse_attn(x, x, x, sizes, sizes[:2], 1)
    with pytest.raises(ValueError, match="q_variable_block_sizes: expected"):
        kernel.video_sparse_attn(x, x, x, sizes[:2], sizes, 1)
    with pytest.raises(ValueError, match="variable_block_sizes: expected"):
        kernel.block_sparse_attn(x, x, x, torch.ones(2, 2, 3, dtype=torch.bool), sizes)
    good, block_map = sizes[:2], torch.ones(2, 2, 2, dtype=torch.bool)
    for wrong in (torch.ones(2), [64, 64], torch.ones(2, dtype=torch.int32, device="meta")):
        with pytest.raises(ValueError, match="variable_block_sizes: expected"):
            kernel.video_sparse_attn(x, x, x, wrong, good, 1)
        with pytest.raises(ValueError, match="q_variable_block_sizes: expected"):
            kernel.video_sparse_attn(x, x, x, good, wrong, 1)
        with pytest.raises(ValueError, match="variable_block_sizes: expected"):
            kernel.block_sparse_attn(x, x, x, block_map, wrong)


def test_wrong_tensors_are_named():
    x = torch.randn(1, 2, 128, 64).bfloat16()
    sizes = torch.tensor([64, 64])
    block_map = torch.ones(2, 2, 2, dtype=torch.bool)
    for wrong in (None, [1], x[0]):
        for place, name in enumerate("qkv"):
            inputs = [x, x, x]
            inputs[place] = wrong
            for call in (
                lambda q, k, v: kernel.video_sparse_attn(q, k, v, sizes, sizes, 1),
                lambda q, k, v: kernel.video_sparse_attn_bshd(q, k, v, sizes, sizes, 1),
                lambda q, k, v: kernel.block_sparse_attn(q, k, v, block_map, sizes),
            ):
                with pytest.raises(ValueError, match=rf"^{name}: expected"):
                    call(*inputs)
    for wrong in (0.5, x[..., :3], [1]):
        with pytest.raises(ValueError, match=r"^compress_attn_weight: expected"):
            kernel.video_sparse_attn(x, x, x, sizes, sizes, 1, compress_attn_weight=wrong)
    for wrong in (None, "1", 0, -1, 1.5):
        with pytest.raises(ValueError, match=r"^topk: expected"):
            kernel.video_sparse_attn(x, x, x, sizes, sizes, wrong)
    for wrong in (None, [[True]]):
        with pytest.raises(ValueError, match=r"^block_map: expected"):
            kernel.block_sparse_attn(x, x, x, wrong, sizes)


def test_entries_that_are_no_tile_choose_none(device):
    """As in lists of map_to_index, whose unused entries are -1: none may fault the context."""
    block_map = torch.rand(2, 3, 5, 7, device=device) < 0.4
    lists, _ = index.map_to_index(block_map)
    lists[..., -1] = 99
    block_map[..., -1] &= block_map.sum(-1) < 7
    for transpose in (False, True):
        assert torch.equal(index.topk_index_to_map(lists, 7, transpose), block_map)
