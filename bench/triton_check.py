"""Our Triton results at full size against fp64 on sampled tiles, beside the error of plain bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from triton_case import Case


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()


class Check:
    """Compares sampled query and key tiles; `worst` keeps, for each tensor, the greatest ratio of
    our maximum error to plain arithmetic's (at most 2 is asked for)."""

    def __init__(self, case: Case, samples: int = 12):
        self.case = case
        device = case.q.device
        self.slots = case.layout.slot_tokens().to(device)
        generator = torch.Generator().manual_seed(case.tokens)
        draw = torch.randint(0, 2**31, (samples, 2), generator=generator).tolist()
        self.places = [(head % case.heads, tile % case.tiles) for head, tile in draw]
        self.places += [(0, case.tiles - 1), (case.heads - 1, 0)]
        self.worst: dict[str, float] = {}

    def _tokens(self, tiles: Tensor) -> Tensor:
        slots = self.slots[tiles].flatten()
        return slots[slots >= 0]

    def _named(self, tiles: Tensor) -> Tensor:
        return self._tokens(tiles.nonzero().flatten())

    def _rows(self, x: Tensor, tokens: Tensor, head: int) -> Tensor:
        return x[0, tokens, head].double()

    def _judge(self, name: str, ours: Tensor, exact: Tensor, plain: Tensor) -> None:
        ulp = torch.finfo(self.case.q.dtype).eps * exact.abs().max()
        error = (ours.double() - exact).abs().max()
        allowed = (plain - exact).abs().max() + ulp / 2
        ratio = (error / allowed).item() if torch.isfinite(ours).all() else float("inf")
        self.worst[name] = max(self.worst.get(name, 0.0), ratio)

    def attend(self) -> None:
        """out and lse of `case.attend`."""
        case = self.case
        for head, tile in self.places:
            rows = self._tokens(torch.tensor([tile], device=self.slots.device))
            keys = self._named(case.map[0, head, tile])
            q, k, v = (
                self._rows(x, t, head) for x, t in ((case.q, rows), (case.k, keys), (case.v, keys))
            )
            score = q @ k.T * case.scale
            weight = score.softmax(1)
            dtype = case.q.dtype
            plain_weight = _plain(_plain(score, dtype).softmax(1), dtype)
            self._judge("out", case.out[0, rows, head], weight @ v, _plain(plain_weight @ v, dtype))
            norm = score.logsumexp(1)
            self._judge("lse", case.lse[0, head, rows], norm, _plain(norm, dtype))

    def attend_backward(self) -> None:
        """dq, dk and dv of `case.attend_backward`, given the forward's out and lse."""
        case = self.case
        dtype = case.q.dtype
        dq, dk, dv, _ = case.gradients
        for head, tile in self.places:
            one = torch.tensor([tile], device=self.slots.device)
            rows, keys = self._tokens(one), self._named(case.map[0, head, tile])
            d_score, weight, plain_score, _ = self._pairs(head, rows, keys)
            k = self._rows(case.k, keys, head)
            self._judge("dq", dq[0, rows, head], d_score @ k * case.scale,
                        _plain(plain_score @ k * case.scale, dtype))  # fmt: skip
            keys, rows = self._tokens(one), self._named(case.map[0, head, :, tile])
            if len(rows) == 0:
                continue
            d_score, weight, plain_score, plain_weight = self._pairs(head, rows, keys)
            q, grad = self._rows(case.q, rows, head), self._rows(case.dout, rows, head)
            self._judge("dk", dk[0, keys, head], d_score.T @ q * case.scale,
                        _plain(plain_score.T @ q * case.scale, dtype))  # fmt: skip
            self._judge("dv", dv[0, keys, head], weight.T @ grad,
                        _plain(plain_weight.T @ grad, dtype))  # fmt: skip

    def _pairs(self, head: int, rows: Tensor, keys: Tensor):
        """dS and P [rows, keys], exact and plain."""
        case = self.case
        dtype = case.q.dtype
        q, grad, out = (self._rows(x, rows, head) for x in (case.q, case.dout, case.out))
        k, v = (self._rows(x, keys, head) for x in (case.k, case.v))
        norm = case.lse[0, head, rows].double()[:, None]
        inner = (grad * out).sum(1, keepdim=True)
        weight = (q @ k.T * case.scale - norm).exp()
        d_weight = grad @ v.T
        plain_weight = _plain((_plain(q @ k.T * case.scale, dtype) - norm).exp(), dtype)
        plain_score = _plain(plain_weight * (_plain(d_weight, dtype) - inner), dtype)
        return weight * (d_weight - inner), weight, plain_score, plain_weight

    def selection(self) -> None:
        """The rule of tau on sampled rows of `case.forward`'s mask, and oc."""
        case = self.case
        for head, tile in self.places:
            means = [self._means(x, head) for x in (case.q, case.k, case.v)]
            score = means[0][tile] @ means[1].T * case.scale
            self._judge_oc(head, tile, score.softmax(0) @ means[2])
            chosen = case.map[0, head, tile]
            plain = case.layout.plain_tiles
            video = torch.ones_like(chosen)
            for part in case.layout.parts:
                video[part.first_tile : part.first_tile + part.tiles] = not part.plain
            if plain and not video[tile]:
                self.worst["selection"] = max(
                    self.worst.get("selection", 0.0), 0.0 if chosen.all() else float("inf")
                )
                continue
            magnitude = (means[0][tile].abs() @ means[1].abs().T).max() * case.scale
            tau = 2.0**-14 * magnitude
            kth = score[video].topk(case.top_k).values[-1]
            picked, left = score[video & chosen], score[video & ~chosen]
            wrong = int(len(picked) != case.top_k) + int((chosen & ~video).sum() != plain)
            worst = max((kth - picked.min()).item(), (left.max() - kth).item() if len(left) else 0)
            ratio = float("inf") if wrong else worst / tau.item()
            self.worst["selection"] = max(self.worst.get("selection", 0.0), ratio)

    def _judge_oc(self, head: int, tile: int, exact: Tensor) -> None:
        error = (self.case.coarse[0][0, head, tile].double() - exact).abs().max()
        ratio = (error / (1e-4 * exact.abs().max())).item()
        self.worst["oc"] = max(self.worst.get("oc", 0.0), ratio)

    def _means(self, x: Tensor, head: int) -> Tensor:
        """[tiles, D] in fp64."""
        there = self.slots >= 0
        rows = x[0, self.slots.clamp(min=0).flatten(), head].double().view(*self.slots.shape, -1)
        return (rows * there[..., None]).sum(1) / there.sum(1, keepdim=True)
