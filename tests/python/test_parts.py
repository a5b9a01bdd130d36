"""Sequences, layouts, masks, info: what needs no attention to be run."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

import transcription
import vidsparse
from vidsparse import Packed, Plain, Sequence, TileLayout, Video, masks
from vidsparse.prepared import Shape, prepare_sizes


def test_sequences_are_values():
    sequence = Sequence.grid((21, 30, 52), prefix=(77, 0))
    assert sequence == Sequence(Plain(77), Plain(0), Video(21, 30, 52))
    assert hash(sequence) == hash(Sequence.decode(sequence.encode()))
    assert str(sequence) == "Plain(77) + Plain(0) + Video(21x30x52)"
    assert str(Sequence(Packed(624))) == "Packed(624 x 64)"
    assert Sequence.decode(Sequence(Packed(3, 128)).encode()).packed == Packed(3, 128)


@pytest.mark.parametrize("tile", [(4, 4, 4), (1, 8, 8), (3, 8, 8), (2, 4, 8)])
def test_layout_holds_every_token_once(tile):
    t, h, w, text = (int(torch.randint(0, 11, ())) for _ in range(4))
    layout = TileLayout(Sequence(Plain(text * 30), Video(t, h, w), Plain(text)), tile)
    tiles, plain = transcription.tiles_of_segments([text * 30, (t, h, w), text], tile)
    assert layout.tiles == len(tiles)
    assert layout.plain_tiles == sum(plain)
    assert layout.tokens == text * 31 + t * h * w
    table = layout.slot_tokens()
    assert [row[row >= 0].tolist() for row in table] == tiles
    assert [layout.is_plain(i) for i in range(layout.tiles)] == plain
    if tiles:
        expected = len(tiles) * layout.slots / layout.tokens - 1
        assert layout.padding_waste() == pytest.approx(expected)


def test_layout_of_packed_tiles():
    layout = TileLayout(Sequence(Packed(5, 128)), (2, 8, 8))
    assert (layout.tokens, layout.tiles, layout.video_tiles) == (640, 5, 5)
    assert layout.length_columns == 5 and layout.padding_waste() == 0
    assert torch.equal(layout.slot_tokens(), torch.arange(640).view(5, 128))


@pytest.mark.parametrize(
    ("sparsity", "tiles", "k"),
    [(0.8, 624, 125), (0.9, 624, 63), (0.9, 1440, 144), (0.7, 10, 4), (0, 3, 3), (0.99, 3, 1)],
)
def test_top_k(sparsity, tiles, k):
    assert vidsparse.top_k_of(sparsity, tiles) == k


@pytest.mark.parametrize("key_tiles", [1, 63, 64, 65, 127, 128, 129, 300])
def test_forms_of_masks(key_tiles, device):
    selected = torch.rand(2, 3, 5, key_tiles, device=device) < 0.3
    bitmap = masks.from_bool(selected)
    assert bitmap.shape[3] == (key_tiles + 127) // 128 * 2
    words = bitmap.view(-1, bitmap.shape[3]).tolist()
    for row, bits in zip(words, selected.view(-1, key_tiles).tolist()):
        for j, bit in enumerate(bits):
            assert (row[j // 64] >> (j % 64)) & 1 == bit
        total = sum(bin(word & (2**64 - 1)).count("1") for word in row)
        assert total == sum(bits)  # so tail bits are zero
    assert torch.equal(masks.to_bool(bitmap, key_tiles), selected)
    indices, counts = masks.to_indices(bitmap, key_tiles)
    for row, count, bits in zip(
        indices.view(-1, key_tiles), counts.view(-1), selected.view(-1, key_tiles)
    ):
        assert row[:count].tolist() == bits.nonzero().flatten().tolist()
        assert (row[count:] == -1).all()
    assert torch.equal(masks.from_indices(indices, counts, key_tiles), bitmap)


@pytest.mark.parametrize("key_tiles", [1, 63, 64, 65, 100, 128, 200])
def test_tail_bits_of_a_callers_bitmap(key_tiles, device):
    full = torch.full((1, 1, 2, masks.mask_words(key_tiles)), -1, device=device)
    selected = torch.ones(1, 1, 2, key_tiles, dtype=torch.bool, device=device)
    assert torch.equal(masks.as_bitmap(full, key_tiles), masks.from_bool(selected))


def test_indices_ignore_what_is_out_of_range(device):
    indices = torch.tensor([[[[3, -1, 9, 3, 0, 1]]]], dtype=torch.int32, device=device)
    for count, expected in ((5, [0, 3]), (0, []), (99, [0, 1, 3]), (-2, [])):
        counts = torch.full((1, 1, 1), count, dtype=torch.int32, device=device)
        selected = masks.to_bool(masks.from_indices(indices, counts, 9), 9)
        assert selected.nonzero()[:, 3].tolist() == expected


def test_info_and_plan():
    info = vidsparse.info()
    assert info.torch == torch.__version__
    assert "cpu:" in str(info)
    if info.library is None:
        pytest.skip("the rest needs the compiled library")
    assert info.backends["cpu"]["cpu"].ok
    assert info.platform is None or info.platform.startswith("manylinux_2_")
    plan = vidsparse.plan(grid=(21, 30, 52), heads=12, sparsity=0.9)
    assert (plan.query.tiles, plan.top_k, plan.backend) == (624, 63, "cpu")
    assert "624 tiles" in str(plan)
    verdicts = vidsparse.explain(grid=(4, 4, 4), head_dim=100)
    assert not verdicts["cpu"].ok and "head_dim" in verdicts["cpu"].reason
    assert vidsparse.plan(grid=(4, 4, 8), top_k=2).top_k == 2
    for top_k in (0, 3):
        with pytest.raises(vidsparse.ArgumentError, match="top_k: expected 1 to 2"):
            vidsparse.plan(grid=(4, 4, 8), top_k=top_k)
    with pytest.raises(vidsparse.ArgumentError, match="exactly one of sparsity and top_k"):
        vidsparse.plan(grid=(4, 4, 8), top_k=1, sparsity=0.5)
    for report in (vidsparse.plan, vidsparse.explain):
        with pytest.raises(vidsparse.ArgumentError, match="prefix: expected none"):
            report(query=Sequence(Video(4, 4, 8)), prefix=(7,))
        with pytest.raises(vidsparse.ArgumentError, match="heads_kv: expected"):
            report(grid=(4, 4, 8), heads=2, heads_kv=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_plan_for_an_absent_gpu_is_refused():
    verdicts = vidsparse.explain(grid=(4, 4, 8), device="cuda")
    assert not any(verdict.ok for verdict in verdicts.values())
    with pytest.raises(vidsparse.UnsupportedError, match="on cuda"):
        vidsparse.plan(grid=(4, 4, 8), device="cuda")


def test_a_changed_environment_counts(monkeypatch):
    """Also for problems that are cached."""
    info = vidsparse.info()
    if info.library is None:
        pytest.skip("needs the compiled library")
    sizes = (Shape((1, 4, 4, 4), (1, 4, 4, 4), (4, 4, 4)), 1, 1, 1, 64, torch.float32)

    def chosen():
        kernels = prepare_sizes(*sizes, torch.device("cpu"), None).kernels
        return kernels.backend, kernels.detail

    for isa in (name for name, verdict in info.cpu_isas.items() if verdict.ok):
        monkeypatch.setenv("VIDSPARSE_CPU_ISA", isa)
        assert chosen() == ("cpu", isa)
    monkeypatch.setenv("VIDSPARSE_BACKEND", "reference")
    assert chosen()[0] == "reference"


def test_command_line():
    run = subprocess.run(
        [sys.executable, "-m", "vidsparse"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("vidsparse ")


def test_works_without_the_compiled_library(tmp_path):
    """A pure-Python installation imports, and refuses calls with the reasons."""
    program = (
        "import torch, vidsparse\n"
        "q = torch.zeros(1, 64, 1, 64)\n"
        "assert vidsparse.info().library is None\n"
        "try:\n    vidsparse.video_sparse_attention(q, q, q, grid=(4, 4, 4), top_k=1)\n"
        "except vidsparse.UnsupportedError as error:\n    print(error)\n"
    )
    source = vidsparse.__path__[0]
    copied = tmp_path / "vidsparse"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDSPARSE")}
    environment["PYTHONPATH"] = str(tmp_path)
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert "expected one that can run this problem on cpu" in run.stdout
