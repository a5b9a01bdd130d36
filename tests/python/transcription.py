"""The op written once more, in plain torch float64: what the package is tested against. Slow and
small; shares no code with it."""

import math

import torch


def tiles_of_video(grid, tile, first=0):
    """Token lists of each tile in slot order (compacted), counted from `first`."""
    (T, H, W), (a, b, c) = grid, tile
    tiles = []
    for t in range(0, T, a):
        for h in range(0, H, b):
            for w in range(0, W, c):
                tiles.append(
                    [
                        first + (x * H + y) * W + z
                        for x in range(t, min(t + a, T))
                        for y in range(h, min(h + b, H))
                        for z in range(w, min(w + c, W))
                    ]
                )
    return tiles


def tiles_of_segments(segments, tile):
    """segments: ints (plain lengths) and (T, H, W). -> token lists, and whether each is plain."""
    slots = math.prod(tile)
    tiles, plain, token = [], [], 0
    for segment in segments:
        if isinstance(segment, int):
            new = [
                list(range(token + s, token + min(s + slots, segment)))
                for s in range(0, segment, slots)
            ]
            token += segment
        else:
            new = tiles_of_video(segment, tile, token)
            token += math.prod(segment)
        tiles += new
        plain += [isinstance(segment, int)] * len(new)
    return tiles, plain


def pooled(x, tiles):
    """x [B, S, H, D] -> [B, H, N, D], 0 for empty tiles."""
    means = [x[:, t].mean(1) if t else torch.zeros_like(x[:, 0]) for t in tiles]
    return torch.stack(means, 2)


def scores_of(q, k, q_tiles, k_tiles, scale):
    kc = pooled(k.double(), k_tiles)
    kc = kc.repeat_interleave(q.shape[2] // k.shape[2], 1)
    return pooled(q.double(), q_tiles) @ kc.transpose(-1, -2) * scale


def best(scores, k, candidates):
    """bool like scores: the k best of the candidates, ties to the lowest index."""
    allowed = torch.tensor(candidates)
    s = torch.where(allowed, scores, -math.inf)
    order = torch.argsort(s, dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    count = min(k, int(allowed.sum()))
    return chosen.scatter(-1, order[..., :count], True)


def select(q, k, q_tiles, q_plain, k_tiles, k_plain, top_k, mode, scale):
    """bool [B, H, Nq, Nk]."""
    scores = scores_of(q, k, q_tiles, k_tiles, scale)
    full = [len(t) > 0 for t in k_tiles]
    if mode == "exempt":
        video = [f and not p for f, p in zip(full, k_plain)]
        chosen = best(scores, top_k, video)
        chosen |= torch.tensor([f and p for f, p in zip(full, k_plain)])
    else:
        chosen = best(scores, top_k + sum(k_plain), full)
    rows = torch.tensor(q_plain)[:, None]
    return torch.where(rows, torch.tensor(full), chosen)


def attend(q, k, v, q_tiles, k_tiles, selected, scale):
    """float64 out [B, S, H, D] and lse [B, H, S]; differentiable. q, k, v of any dtype."""
    B, S, H, D = q.shape
    group = H // k.shape[2]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    allowed = torch.zeros(B, H, S, k.shape[1], dtype=torch.bool)
    for i, qt in enumerate(q_tiles):
        for j, kt in enumerate(k_tiles):
            block = torch.zeros(len(qt), len(kt), dtype=torch.bool) | selected[:, :, i, j, None, None]
            rows = torch.tensor(qt, dtype=torch.long)[:, None]
            allowed[:, :, rows, torch.tensor(kt, dtype=torch.long)] = block
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    s = s.masked_fill(~allowed, -math.inf)
    lse = torch.logsumexp(s, -1)
    p = torch.where(lse[..., None] == -math.inf, 0.0, torch.exp(s - lse[..., None]))
    return torch.einsum("bhqk,bkhd->bqhd", p, v), lse


def coarse(q, k, v, q_tiles, k_tiles, scale):
    """float64 oc [B, H, Nq, D]; differentiable."""
    group = q.shape[2] // k.shape[2]
    scores = scores_of(q, k, q_tiles, k_tiles, scale)
    full = torch.tensor([len(t) > 0 for t in k_tiles])
    weights = torch.softmax(scores.masked_fill(~full, -math.inf), -1)
    return weights @ pooled(v.double(), k_tiles).repeat_interleave(group, 1)


def vsa(q, k, v, q_segments, k_segments, tile, top_k, gate=None, scale=None, mode="exempt",
        selected=None):  # fmt: skip
    """The whole op in float64: out, lse, selected. `selected` replaces the selection."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q_tiles, q_plain = tiles_of_segments(q_segments, tile)
    k_tiles, k_plain = tiles_of_segments(k_segments, tile)
    if selected is None:
        selected = select(q, k, q_tiles, q_plain, k_tiles, k_plain, top_k, mode, scale)
    out, lse = attend(q, k, v, q_tiles, k_tiles, selected, scale)
    if gate is not None:
        oc = coarse(q, k, v, q_tiles, k_tiles, scale)
        tile_of = torch.empty(q.shape[1], dtype=torch.long)
        for i, tokens in enumerate(q_tiles):
            tile_of[tokens] = i
        gate = gate.double() if isinstance(gate, torch.Tensor) else gate
        out = out + gate * oc[:, :, tile_of].transpose(1, 2)
    return out, lse, selected
