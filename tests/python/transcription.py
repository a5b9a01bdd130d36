"""The op written once more in plain torch: what the package is tested against. Slow and small;
shares no code with it. In float64 it is exact; in the inputs' dtype every product, softmax and sum
is rounded to it, which makes its error the yardstick of docs/numerics.md.
"""

import math

import torch


def tiles_of_video(grid, tile, first=0):
    """Token lists of each tile in slot order (compacted), counted from `first`."""
    (frames, height, width), (a, b, c) = grid, tile
    return [
        [
            first + (x * height + y) * width + z
            for x in range(t, min(t + a, frames))
            for y in range(h, min(h + b, height))
            for z in range(w, min(w + c, width))
        ]
        for t in range(0, frames, a)
        for h in range(0, height, b)
        for w in range(0, width, c)
    ]


def tiles_of_segments(segments, tile):
    """segments: ints (lengths of plain ones) and (T, H, W). -> token lists; whether plain."""
    slots = math.prod(tile)
    tiles, plain, token = [], [], 0
    for segment in segments:
        if isinstance(segment, int):
            starts = range(0, segment, slots)
            new = [
                list(range(token + s, token + min(s + slots, segment))) for s in starts
            ]
            token += segment
        else:
            new = tiles_of_video(segment, tile, token)
            token += math.prod(segment)
        tiles += new
        plain += [isinstance(segment, int)] * len(new)
    return tiles, plain


def tiles_of_packed(sizes, slots=64):
    """Valid tokens of packed tiles."""
    return [list(range(j * slots, j * slots + n)) for j, n in enumerate(sizes)]


def pooled(x, tiles, dtype):
    """x [B, S, H, D] -> means [B, H, N, D] in `dtype`, 0 for empty tiles."""
    x = x.to(dtype)
    return torch.stack([x[:, t].mean(1) if t else torch.zeros_like(x[:, 0]) for t in tiles], 2)


def scores_of(q, k, q_tiles, k_tiles, scale, dtype=torch.float64):
    kc = pooled(k, k_tiles, dtype).repeat_interleave(q.shape[2] // k.shape[2], 1)
    return pooled(q, q_tiles, dtype) @ kc.transpose(-1, -2) * scale


def best(scores, k, candidates):
    """bool like scores: the k best of the candidate columns, ties to the lowest index."""
    allowed = torch.tensor(candidates)
    order = torch.argsort(
        torch.where(allowed, scores, -math.inf), dim=-1, descending=True, stable=True
    )
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter(-1, order[..., : min(k, int(allowed.sum()))], True)


def select(scores, q_plain, k_full, k_plain, top_k, mode="exempt"):
    """bool [B, H, Nq, Nk]. k_full: which key tiles hold tokens."""
    if mode == "exempt":
        chosen = best(scores, top_k, [f and not p for f, p in zip(k_full, k_plain)])
        chosen |= torch.tensor([f and p for f, p in zip(k_full, k_plain)])
    else:
        chosen = best(scores, top_k + sum(k_plain), k_full)
    return torch.where(torch.tensor(q_plain)[:, None], torch.tensor(k_full), chosen)


def allowed_pairs(selected, q_tiles, k_tiles, q_tokens, k_tokens):
    """bool [B, H, q_tokens, k_tokens]."""
    q_of, k_of = (tile_of(t, n) for t, n in ((q_tiles, q_tokens), (k_tiles, k_tokens)))
    pairs = selected[:, :, q_of.clamp(min=0)][:, :, :, k_of.clamp(min=0)]
    return pairs & (q_of >= 0)[:, None] & (k_of >= 0)


def tile_of(tiles, tokens):
    """int64 [tokens]: the tile of each token, -1 for pad slots."""
    where = torch.full((tokens,), -1)
    for i, members in enumerate(tiles):
        where[members] = i
    return where


def attend(q, k, v, allowed, scale, dtype=torch.float64, lse_ulps=0):
    """out [B, S, H, D] and lse [B, H, S] in `dtype`; differentiable. Pads must be finite.
    `lse_ulps`: by how many the lse is off that the weights of the backward are computed from."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.to(dtype) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    scores = scores.masked_fill(~allowed, -math.inf)
    some = allowed.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~some, 0.0), -1).masked_fill(~some, 0.0)
    lse = torch.logsumexp(scores.masked_fill(~some, 0.0), -1)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    if lse_ulps:
        size = lse.detach().abs()
        off = 1 + lse_ulps * (torch.nextafter(size, size + 1) - size)
        apart = torch.einsum("bhqk,bkhd->bqhd", weights * off[..., None], v)
        out = (out - apart).detach() + apart
        lse = lse.detach() + off * (lse - lse.detach())
    return out, lse.masked_fill(~some[..., 0], -math.inf)


def coarse(q, k, v, q_tiles, k_tiles, scale, dtype=torch.float64):
    """oc [B, H, Nq, D] in `dtype`, means kept in float32 at least; differentiable."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scores = scores_of(q, k, q_tiles, k_tiles, scale, wide).to(dtype)
    full = torch.tensor([len(t) > 0 for t in k_tiles])
    weights = torch.softmax(scores.masked_fill(~full, -math.inf), -1).nan_to_num()
    vc = pooled(v, k_tiles, wide).repeat_interleave(q.shape[2] // k.shape[2], 1)
    return (weights.to(wide) @ vc).to(dtype)


def vsa(
    q, k, v, q_tiles, k_tiles, selected, gate=None, scale=None, dtype=torch.float64, lse_ulps=0
):
    """The op over a given selection: out and lse. Tensors on the CPU."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    allowed = allowed_pairs(selected, q_tiles, k_tiles, q.shape[1], k.shape[1])
    out, lse = attend(q, k, v, allowed, scale, dtype, lse_ulps)
    if gate is not None:
        oc = coarse(q, k, v, q_tiles, k_tiles, scale, dtype)
        place = tile_of(q_tiles, q.shape[1])
        rows = oc[:, :, place.clamp(min=0)].transpose(1, 2) * (place >= 0)[:, None, None]
        added = (gate.to(dtype) if isinstance(gate, torch.Tensor) else gate) * rows
        out = as_saved(out, added, lse)
    return out, lse


def as_saved(fine, added, lse):
    """Their sum, whose gradient takes the fine branch as what the rounded sum leaves of it: delta
    as docs/numerics.md defines it, by way of the lse, which all weights of a row share."""
    out = fine + added
    lost = (fine.double() - (out.double() - added.double())).detach().to(out.dtype)
    lse = lse.masked_fill(lse == -math.inf, 0.0).transpose(1, 2)[..., None]
    return out + lost * (lse - lse.detach())
