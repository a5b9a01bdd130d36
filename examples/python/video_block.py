"""A minimal block of a video diffusion transformer with Video Sparse Attention, on random latents.

    python examples/python/video_block.py
"""

import torch
from torch import Tensor, nn

import vidsparse


def rope(grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T*H*W, 1, head_dim / 2] of rotary embeddings over (t, h, w)."""
    pairs = head_dim // 2
    share = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [
        place.flatten()[:, None] * 10000.0 ** -(torch.arange(n) / n)
        for place, n in zip(places, share, strict=True)
    ]
    angle = torch.cat(angles, -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, S, H, D]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).type_as(x)


class VideoBlock(nn.Module):
    """Self-attention over the tokens of a video, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)
        self.attention = vidsparse.VideoSparseAttention(dim, heads)
        self.to_out = nn.Linear(dim, dim)
        wide = 4 * dim
        self.feed_forward = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))

    def forward(self, x: Tensor, grid: tuple[int, int, int], sparsity: float) -> Tensor:
        """x [B, T*H*W, dim] in raster order: nothing is tiled, padded or copied for attention."""
        hidden = self.norm1(x)
        qkv = self.to_qkv(hidden).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)
        cos, sin = rope(grid, q.shape[-1])
        q, k = rotate(self.norm_q(q), cos, sin), rotate(self.norm_k(k), cos, sin)
        out = self.attention(q, k, v, hidden, grid=grid, sparsity=sparsity)
        x = x + self.to_out(out.flatten(2))
        return x + self.feed_forward(self.norm2(x))


if __name__ == "__main__":
    torch.manual_seed(0)
    grid = (5, 12, 20)
    block = VideoBlock(dim=256, heads=4)
    tokens = torch.randn(1, 5 * 12 * 20, 256)
    print(vidsparse.plan(grid=grid, heads=4, head_dim=64, dtype=torch.float32, sparsity=0.8))
    with torch.no_grad():
        dense, sparse = block(tokens, grid, 0.0), block(tokens, grid, 0.8)
    apart = (sparse - dense).norm() / dense.norm()
    print(f"dense and 80 % sparse, untrained: {apart:.2%} apart")
