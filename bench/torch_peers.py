"""What torch offers for the same work on the CPU: dense SDPA and compiled FlexAttention."""

import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import scaled_dot_product_attention


class DenseAttention:
    """Forward, and backward of its graph; tensors [1, H, S, D], dense: the order torch likes."""

    name = "torch SDPA, dense"

    def __init__(self, q, k, v, dout):
        self._inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        self._dout = dout
        self._out = None

    def forward(self):
        with torch.no_grad():
            return scaled_dot_product_attention(*self._inputs)

    def record(self):
        """The graph that backward() walks; outside its time."""
        self._out = scaled_dot_product_attention(*self._inputs)

    def backward(self):
        return torch.autograd.grad(self._out, self._inputs, self._dout, retain_graph=True)


def tile_order(x, grid):
    """[1, H, S, D] in raster order -> the same tile after tile, for whole 4x4x4 tiles."""
    t, h, w = (side // 4 for side in grid)
    boxes = x.view(1, x.shape[1], t, 4, h, 4, w, 4, x.shape[3])
    return boxes.permute(0, 1, 2, 4, 6, 3, 5, 7, 8).reshape(x.shape)


class BlockAttention:
    """FlexAttention compiled for the blocks of a selection, forward (torch has no CPU backward).

    Its tokens lie in tile_order, so a block is 64 consecutive ones; the reordering a video needs
    before and after is not counted against it.
    """

    name = "torch FlexAttention, compiled"

    def __init__(self, q, k, v, selected):
        """selected: bool [1, H, Nq, Nk]."""
        counts = selected.sum(-1, dtype=torch.int32)
        indices = torch.argsort(selected.to(torch.uint8), dim=-1, descending=True,
                                stable=True).to(torch.int32)
        self._mask = flex.BlockMask.from_kv_blocks(
            torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, BLOCK_SIZE=64)
        self._inputs = (q, k, v)
        torch._dynamo.reset()
        self._run = torch.compile(flex.flex_attention, dynamic=False)

    def forward(self):
        with torch.no_grad():
            return self._run(*self._inputs, block_mask=self._mask)
