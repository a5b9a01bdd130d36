"""Our calls on one problem, through the C interface, over memory that torch owns."""

import ctypes as c

import torch

from c_interface import (
    DTYPES,
    AttendArgs,
    BackwardArgs,
    ForwardArgs,
    Gate,
    Mask,
    PoolArgs,
    SelectArgs,
    Selection,
    Tensor,
)

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def view(tensor):
    """A ctypes view of a torch tensor, its strides included."""
    fields = list(tensor.shape) + [0] * (4 - tensor.dim())
    steps = list(tensor.stride()) + [0] * (4 - tensor.dim())
    return Tensor(tensor.data_ptr(), DTYPES[NAMES[tensor.dtype]], tensor.dim(), tuple(fields),
                  tuple(steps))


class SparseRun:
    """Stage name -> a call without arguments; q, k, v, gate, dout are [1, S, H, D]."""

    def __init__(self, plan, q, k, v, gate, dout, sparsity):
        self._plan = plan
        info = plan.info
        heads, dim = q.shape[2], q.shape[3]
        nan = float("nan")
        pooled = [torch.full((1, heads, info.query_tiles, dim), nan) for _ in range(4)]
        rows = [torch.full((1, heads, info.query_tiles), nan) for _ in range(2)]
        lse, plain_lse = (torch.full((1, heads, info.query_tokens), nan) for _ in range(2))
        self.gradients = [torch.full_like(q, nan) for _ in range(4)]
        self.out, self.plain_out = torch.full_like(q, nan), torch.full_like(q, nan)
        self.words = torch.zeros(info.mask_words, dtype=torch.int64)
        mask = Mask.from_buffer_copy(info.mask)
        mask.words = self.words.data_ptr()
        # Everything the views point to lives as long as the run.
        self._kept = (q, k, v, gate, dout, pooled, rows, lse, plain_lse)

        tensors = {"q": view(q), "k": view(k), "v": view(v)}
        chosen = c.pointer(Selection(rule=1, sparsity=sparsity))
        gated = Gate(2, 0, view(gate))
        qc, kc, vc, oc = (view(x) for x in pooled)
        coarse = {"oc": oc, "coarse_max": view(rows[0]), "coarse_sum": view(rows[1])}
        outputs = dict(zip(("dq", "dk", "dv"), (view(x) for x in self.gradients)))
        self._args = {
            "pool": PoolArgs(**tensors, qc=qc, kc=kc, vc=vc),
            "select": SelectArgs(qc=qc, kc=kc, vc=vc, selection=chosen, mask=mask, **coarse),
            "attend": AttendArgs(**tensors, mask=mask, out=view(self.plain_out),
                                 lse=view(plain_lse)),
            "forward": ForwardArgs(**tensors, selection=chosen, gate=gated, mask=mask,
                                   out=view(self.out), lse=view(lse), **coarse),
            "attend backward": BackwardArgs(**tensors, mask=mask, out=view(self.plain_out),
                                            lse=view(plain_lse), dout=view(dout), **outputs),
            "backward": BackwardArgs(**tensors, mask=mask, gate=gated, out=view(self.out),
                                     lse=view(lse), **coarse, dout=view(dout), **outputs,
                                     dgate=view(self.gradients[3])),
        }
        self._bytes = {stage: plan.workspace_bytes(self._call(stage), args)
                       for stage, args in self._args.items()}
        self._workspace = torch.zeros(max(self._bytes.values()) + 64, dtype=torch.uint8)
        self._base = (self._workspace.data_ptr() + 63) // 64 * 64

    @staticmethod
    def _call(stage):
        return stage.split()[-1]

    @property
    def stages(self):
        """In an order in which each finds what it needs."""
        return list(self._args)

    def run(self, stage):
        self._plan.run(self._call(stage), self._args[stage], self._base, self._bytes[stage])

    def selected(self):
        """The selection as bool [1, H, Nq, Nk]."""
        info = self._plan.info
        words = self.words.view(1, info.mask.heads, info.query_tiles, info.mask_row_words)
        bits = (words.unsqueeze(-1) >> torch.arange(64)) & 1
        return bits.flatten(-2)[..., :info.key_tiles].bool()
