"""A minimal block of a video diffusion transformer with Video Sparse Attention, on random latents.

    python examples/python/video_block.py
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import vidsparse


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept for training too, whoever comes first
def rope(
    grid: tuple[int, int, int], head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin [T*H*W, 1, head_dim / 2] of rotary embeddings over (t, h, w)."""
    pairs = head_dim // 2
    share = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [
        place.flatten()[:, None] * 10000.0 ** -(torch.arange(n) / n)
        for place, n in zip(places, share, strict=True)
    ]
    angle = torch.cat(angles, -1)[:, None].to(device)
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

    def attend(self, hidden: Tensor, grid: tuple[int, int, int], sparsity: float | None) -> Tensor:
        """hidden [B, T*H*W, dim] in raster order: nothing is tiled, padded or copied. A sparsity of
        None is torch's dense attention."""
        q, k, v = self.to_qkv(hidden).unflatten(-1, (3, self.heads, -1)).unbind(2)
        cos, sin = rope(grid, q.shape[-1], q.device)
        q, k = (
            rotate(norm(x.float()), cos, sin).type_as(v)
            for norm, x in ((self.norm_q, q), (self.norm_k, k))
        )
        if sparsity is None:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        else:
            out = self.attention(q, k, v, hidden, grid=grid, sparsity=sparsity)
        return self.to_out(out.flatten(2))

    def forward(self, x: Tensor, grid: tuple[int, int, int], sparsity: float | None) -> Tensor:
        """x [B, T*H*W, dim]."""
        x = x + self.attend(self.norm1(x), grid, sparsity)
        return x + self.feed_forward(self.norm2(x))


if __name__ == "__main__":
    torch.manual_seed(0)
    grid = (5, 12, 20)
    block = VideoBlock(dim=256, heads=4)
    tokens = torch.randn(1, 5 * 12 * 20, 256)
    print(vidsparse.plan(grid=grid, heads=4, head_dim=64, dtype=torch.float32, sparsity=0.8))
    with torch.no_grad():
        dense, sparse = block(tokens, grid, None), block(tokens, grid, 0.8)
    apart = (sparse - dense).norm() / dense.norm()
    print(f"dense and 80 % sparse, untrained: {apart:.2%} apart")
