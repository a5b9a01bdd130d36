"""The stages of the Triton backend alone: pooling, selection, masks, values that are not finite."""

import pytest
import torch

import judging
import transcription
from triton_support import DEVICE, NAN, Run, Setting, Side, mask_words, poisoned, to_bool
from vidsparse.backends import Lengths, Selection
from vidsparse.masks import from_bool

INF = float("inf")
VIDEO = (3, 9, 6)


def select(run, qc, kc, vc=None, top_k=3, mode="exempt", always=None, scale=1.0):
    """bool [B, H, Nq, Nk] and, with vc, the coarse output."""
    coarse = (None, None, None)
    if vc is not None:
        coarse = (poisoned(*qc.shape), poisoned(*qc.shape[:3]), poisoned(*qc.shape[:3]))
    mask = torch.full(
        (*qc.shape[:3], mask_words(kc.shape[2])), -1, dtype=torch.int64, device=DEVICE
    )
    qc, kc, vc = (None if x is None else x.to(DEVICE) for x in (qc, kc, vc))
    selection = Selection(top_k, mode, always)
    run.kernels.select(qc, kc, vc, Lengths(), selection, scale, mask, *coarse)
    bits = to_bool(mask.cpu(), mask.shape[-1] * 64)
    assert not bits[..., kc.shape[2] :].any()
    return bits[..., : kc.shape[2]], coarse


def test_pool_keeps_float32():
    run = Run(Setting(Side([70, VIDEO]), groups=1, head_dim=128), torch.float16)
    shapes = ((2, run.q_tiles), (1, run.k_tiles), (1, run.k_tiles))
    pooled = [poisoned(1, heads, tiles, 128) for heads, tiles in shapes]
    run.kernels.pool(run.q, run.k, run.v, run.lengths, *pooled)
    tiles = run.entries[0][0]
    for got, x in zip(pooled, (run.q, run.k, run.v)):
        exact = transcription.pooled(x.cpu(), tiles, torch.float64)
        most = exact.abs().amax(-1, keepdim=True)
        assert ((got.cpu() - exact).abs() <= 1e-5 * most).all()
    alone = poisoned(1, 1, run.k_tiles, 128)
    run.kernels.pool(None, run.k, None, run.lengths, None, alone, None)
    assert torch.equal(alone, pooled[1])


@pytest.mark.parametrize("tiles", [40, 700, 4200])
def test_rows_of_any_length(tiles):
    """Held whole, and read again in chunks; oc within 1e-4."""
    run = Run(Setting(Side([(1, 8, 16)]), Side([(1, 8, 8 * tiles)]), (1, 8, 8), heads=1, groups=1),
              torch.float16)  # fmt: skip
    qc, kc, vc = (torch.randn(1, 1, count, 64) for count in (2, tiles, tiles))
    top_k = tiles // 7
    chosen, (oc, _, _) = select(run, qc, kc, vc, top_k, scale=0.2)
    score = qc.double() @ kc.double().transpose(-1, -2) * 0.2
    tau = 2.0**-14 * 0.2 * (qc.abs() @ kc.abs().transpose(-1, -2)).amax(-1, keepdim=True)
    judging.check_selection(chosen, score, tau.double(), [True] * tiles, top_k)
    exact = score.softmax(-1) @ vc.double()
    assert ((oc.cpu() - exact).abs() <= 1e-4 * exact.abs().amax(-1, keepdim=True)).all()


def scored(scores):
    """Pooled tensors whose products are `scores` [Nk], and a run that selects with them."""
    tiles = len(scores)
    setting = Setting(Side([(4, 4, 4)]), Side([(4, 4, 4 * tiles)]), heads=1, groups=1)
    run = Run(setting, torch.float16)
    qc, kc = torch.zeros(1, 1, 1, 64), torch.zeros(1, 1, tiles, 64)
    qc[..., 0] = 1.0
    kc[0, 0, :, 0] = torch.tensor(scores)
    return run, qc, kc


@pytest.mark.parametrize(
    "scores, top_k, expected",
    [
        ([1.0, 2.0, 2.0, 2.0, 0.0], 2, [1, 2]),
        ([-0.0, 0.0, -0.0, -1.0], 2, [0, 1]),
        ([NAN, -3.0, NAN, -4.0, 5.0], 4, [0, 1, 3, 4]),
        ([1e-40, 0.5, 1e38, -1e38], 2, [1, 2]),
        ([3.0] * 7, 7, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_order_of_scores(scores, top_k, expected):
    run, qc, kc = scored(scores)
    chosen, _ = select(run, qc, kc, top_k=top_k)
    assert chosen[0, 0, 0].nonzero().flatten().tolist() == expected


def test_infinite_scores():
    """Of a query that has nothing but one component, so that no product is 0 * inf."""
    run, qc, kc = scored([1.0, 2.0, 3.0, 4.0])
    qc[:] = 1.0
    kc[:] = 0.0
    kc[0, 0, :, 0] = torch.tensor([-INF, 1.0, INF, NAN])
    for top_k, expected in ((1, [2]), (2, [1, 2]), (3, [0, 1, 2])):
        chosen, _ = select(run, qc, kc, top_k=top_k)
        assert chosen[0, 0, 0].nonzero().flatten().tolist() == expected


def test_always_is_added():
    run = Run(Setting(Side([70, VIDEO])), torch.float16)
    qc, kc = (torch.randn(1, 2, run.k_tiles, 64) for _ in range(2))
    always = torch.rand(1, 1, run.q_tiles, run.k_tiles) < 0.2
    bits = from_bool(always).to(DEVICE).expand(1, 2, -1, -1)
    alone, _ = select(run, qc, kc)
    both, _ = select(run, qc, kc, always=bits)
    assert torch.equal(both, alone | always)


def test_masks_of_the_caller():
    """Rows that name nothing, everything, or empty tiles; batch and heads share one mask."""
    lengths = [[64, 0, 17, 64, 1, 64]]
    run = Run(Setting(Side(packed=6, lengths=lengths), batch=2, gate="none"), torch.bfloat16)
    chosen = torch.rand(1, 1, 6, 6) < 0.4
    chosen[..., 0, :], chosen[..., 2, :], chosen[..., 3, :] = False, True, False
    chosen[..., 3, 1] = True
    run.mask = from_bool(chosen).to(DEVICE).expand(2, 2, -1, -1)
    run.kernels.attend(run.q, run.k, run.v, run.lengths, run.scale, run.mask, None, None,
                       run.out, run.lse)  # fmt: skip
    run.backward()
    run.check()
    assert torch.isneginf(run.lse[:, :, :64]).all() and torch.isneginf(run.lse[:, :, 192:256]).all()


def attended(run):
    """The outputs of attend on the mask of `run`, and its gradients."""
    run.out.fill_(NAN)
    run.lse.fill_(NAN)
    for x in run.gradients:
        x.fill_(NAN)
    run.kernels.attend(run.q, run.k, run.v, run.lengths, run.scale, run.mask, None, None,
                       run.out, run.lse)  # fmt: skip
    run.backward()
    return [x.clone() for x in (run.out, run.lse, *run.gradients)]


def test_not_a_number_stays_where_it_belongs():
    """A NaN in a key reaches the rows that select its tile; one in a query its own row."""
    run = Run(Setting(Side([VIDEO]), gate="none"), torch.float32)
    run.forward()
    tile_of = transcription.tile_of(run.entries[0][0], run.q.shape[1])
    reach = run.selected()[0, :, tile_of][:, :, tile_of[20]].T  # [tokens, heads]: select token 20's
    clean = attended(run)
    run.k[0, 20] = NAN
    out, lse, dq, dk, dv = attended(run)
    assert torch.equal(out[0].isnan().all(-1).cpu(), reach)
    assert torch.equal(lse[0].isnan().T.cpu(), reach)
    assert torch.equal(out[0][~reach], clean[0][0][~reach])
    assert torch.equal(dq[0].isnan().all(-1).cpu(), reach)
    run.k[0, 20] = 0.5
    run.q[0, 33] = NAN
    out, lse, dq, dk, dv = attended(run)
    only = torch.arange(len(reach)) == 33
    assert torch.equal(out[0].isnan().any(-1).any(-1).cpu(), only)
    assert torch.equal(dq[0].isnan().any(-1).any(-1).cpu(), only)
    met = run.selected()[0, :, tile_of[33]][:, tile_of].T
    assert torch.equal(dk[0].isnan().all(-1).cpu(), met) and torch.equal(dk.isnan(), dv.isnan())


def test_rows_without_weight():
    """All scores -inf: zero rows, lse -inf, no gradients, though dout and values are infinite. One
    row is in a whole tile, one in a ragged one."""
    run = Run(Setting(Side([(4, 4, 9)]), gate="none", top_k=2), torch.float32)
    dead = [7, 8]
    run.q[..., 0], run.k[..., 0] = run.q[..., 0].abs() + 1, run.k[..., 0].abs() + 1
    run.q[0, dead, :, 0] = -INF
    run.forward()
    assert (run.out[0, dead] == 0).all() and torch.isneginf(run.lse[0, :, dead]).all()
    assert run.out.isfinite().all()
    run.dout[0, dead] = INF
    run.backward()
    assert all(x.isfinite().all() for x in run.gradients)
    assert (run.gradients[0][0, dead] == 0).all()
