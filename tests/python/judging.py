"""How results are judged (docs/numerics.md): by float64, with the error of the same arithmetic done
plainly in the inputs' dtype as the yardstick."""

import torch

import transcription

# Where rounding each result changes nothing (float32), plain's error is a matter of luck.
SLACK = {torch.float64: 1e6, torch.float32: 4.0}


def check(name, got, exact, plain, dtype, wider=1.0):
    """max error <= 2x plain's + 1 ulp, RMS <= 1.5x plain's + half an ulp, `wider` times; positions
    of non-finite values are equal. Of several plain answers (a list) the worst error counts."""
    plain = plain if isinstance(plain, list) else [plain]
    got, exact, *plain = (x.detach().double().cpu() for x in (got, exact, *plain))
    assert got.shape == exact.shape, f"{name}: {got.shape} for {exact.shape}"
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(got), kind(exact)), f"{name}: {kind.__name__} elsewhere"
    fine = torch.isfinite(exact)
    if not fine.any():
        return
    error = (got - exact)[fine].abs()
    allowed = [(x - exact)[fine].abs() for x in plain]
    ulp = torch.finfo(dtype).eps
    slack = SLACK.get(dtype, 1.0)
    most = wider * (slack * 2 * max(x.max() for x in allowed) + ulp * exact[fine].abs().max())
    where = torch.unravel_index(((got - exact).abs() * fine).argmax(), got.shape)
    place = [int(i) for i in where]
    assert error.max() <= most, f"{name}: error {error.max():.3g} > {most:.3g} at {place}"
    most = wider * (slack * 1.5 * max(map(rms_of, allowed)) + ulp / 2 * rms_of(exact[fine]))
    assert rms_of(error) <= most, f"{name}: RMS error {rms_of(error):.3g} > {most:.3g}"


def rms_of(x):
    return x.square().mean().sqrt()


def check_selection(selected, scores, tau, candidates, k):
    """bool [..., N] against float64 scores: k candidates a row, none below the k-th score - tau,
    none left out above it + tau. tau [..., 1]."""
    allowed = torch.tensor(candidates)
    count = min(k, int(allowed.sum()))
    assert not (selected & ~allowed).any()
    assert (selected.sum(-1) == count).all()
    if count == 0:
        return
    kth = torch.where(allowed, scores, -torch.inf).topk(count, -1).values[..., -1:]
    assert not (selected & (scores < kth - tau)).any()
    assert not (allowed & ~selected & (scores > kth + tau)).any()


def tau_of(q, k, q_tiles, k_tiles, scale):
    """float64 [B, H, Nq, 1]: what float32 scores may be off by."""
    qc = transcription.pooled(q, q_tiles, torch.float64).abs()
    kc = transcription.pooled(k, k_tiles, torch.float64).abs()
    kc = kc.repeat_interleave(q.shape[2] // k.shape[2], 1)
    return 2.0**-14 * abs(scale) * (qc @ kc.transpose(-1, -2)).amax(-1, keepdim=True)


def check_call(q, k, v, gate, scale, q_tiles, k_tiles, selected, run):
    """`run(q, k, v, gate)` -> out, lse, judged over `selected` bool [B, H, Nq, Nk]: forward, and
    backward where the inputs are leaves and gradients are on. Tensors may be on a GPU; the
    yardsticks run on the CPU."""
    leaves = [x for x in (q, k, v, gate) if isinstance(x, torch.Tensor)]
    out, lse = run(q, k, v, gate)
    dout = torch.randn_like(out)
    dlse = torch.randn_like(lse).masked_fill(torch.isneginf(lse), 0.0)
    backward = torch.is_grad_enabled()
    got = torch.autograd.grad((out, lse), leaves, (dout, dlse)) if backward else ()
    answers = []
    # Weights of the backward come from the rounded lse, whose error a whole row shares; in float32
    # nothing else is as large.
    ulps = (-1, 1) if q.dtype == torch.float32 and backward else (0,)
    for dtype, lse_ulps in ((torch.float64, 0), *((q.dtype, n) for n in ulps)):
        copies = [x.detach().cpu().requires_grad_() for x in leaves]
        copy_gate = copies[3] if len(copies) == 4 else gate
        exact_out, exact_lse = transcription.vsa(
            *copies[:3], q_tiles, k_tiles, selected.cpu(), copy_gate, scale, dtype, lse_ulps
        )
        seeds = (dout.cpu().to(dtype), dlse.cpu().to(exact_lse.dtype))
        results = exact_out, exact_lse
        gradients = torch.autograd.grad(results, copies, seeds) if backward else ()
        answers.append((exact_out, exact_lse, *gradients))
    names = ("out", "lse", "dq", "dk", "dv", "dgate")
    rows = max(lse.numel(), 1)
    wider = 1 + 16 / rows if rows < 64 else 1.0  # plain's error is a single draw there
    for name, result, exact, *plain in zip(names, (out, lse, *got), *answers, strict=False):
        check(name, result, exact, plain, torch.float32 if name == "lse" else q.dtype, wider)
