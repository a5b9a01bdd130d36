"""A small diffusion transformer on the pixels of real clips, dense or with Video Sparse Attention.

    python examples/python/video_dit.py CLIP.mp4 [STEPS]

It learns the velocity from video to noise (rectified flow): x_t = (1 - t) x + t noise.
"""

import subprocess
import sys

import torch
from torch import Tensor, nn
from train_step import sparsity_at
from video_block import VideoBlock

Grid = tuple[int, int, int]
PATCH = (2, 8, 8)  # frames, rows, columns of pixels in a token


class DiTBlock(VideoBlock):
    """A VideoBlock that the time modulates (adaLN-Zero of arXiv 2212.09748): it starts as the
    identity."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.modulate = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, time: Tensor, grid: Grid, sparsity: float | None) -> Tensor:
        """x [B, T*H*W, dim], time [B, dim]."""
        modulation = self.modulate(time)[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1, grid, sparsity)
        return x + gate2 * self.feed_forward(self.norm2(x) * (1 + scale2) + shift2)


class VideoDiT(nn.Module):
    """Velocity of noisy patches [B, T*H*W, 384] at times [B] in [0, 1]; the default has 40 million
    parameters."""

    def __init__(self, dim: int = 512, heads: int = 8, depth: int = 8):
        super().__init__()
        values = 3 * PATCH[0] * PATCH[1] * PATCH[2]
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(0, 3, dim // 2))
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.embed = nn.Linear(values, dim)
        self.blocks = nn.ModuleList([DiTBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, time: Tensor, grid: Grid, sparsity: float | None) -> Tensor:
        angle = time[:, None] * self.frequencies
        time = self.time(torch.cat((angle.sin(), angle.cos()), -1))
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, time, grid, sparsity)
        return self.head(self.norm(x))

    def loss(self, clean: Tensor, time: Tensor, noise: Tensor, grid: Grid, sparsity) -> Tensor:
        """Mean squared error of the velocity at the given times [B]."""
        t = time[:, None, None]
        velocity = self((1 - t) * clean + t * noise, time, grid, sparsity)
        return (velocity.float() - (noise - clean)).square().mean()


def read_clip(path: str, height: int = 272, width: int = 480) -> Tensor:
    """Frames [F, height, width, 3], uint8, scaled and cut by ffmpeg."""
    size = f"{width}:{height}"
    scale = f"scale={size}:force_original_aspect_ratio=increase,crop={size}"
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", scale]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, height, width, 3)


def crops(clips: list[Tensor], batch: int, grid: Grid, random: torch.Generator) -> Tensor:
    """Random pieces of random clips, mirrored or not, as patches [batch, T*H*W, 384] in [-1, 1]."""
    sides = [n * p for n, p in zip(grid, PATCH, strict=True)]
    pieces = []
    for _ in range(batch):
        draw = torch.rand(5, generator=random).tolist()
        clip = clips[int(draw[0] * len(clips))]
        room = [n - side + 1 for n, side in zip(clip.shape[:3], sides, strict=True)]
        start = [int(u * n) for u, n in zip(draw[1:4], room, strict=True)]
        (f, y, x), (frames, rows, columns) = start, sides
        piece = clip[f : f + frames, y : y + rows, x : x + columns]
        pieces.append(piece.flip(2) if draw[4] < 0.5 else piece)
    video = torch.stack(pieces).float() / 127.5 - 1
    for i, side in enumerate(PATCH):  # [B, T, 2, H, 8, W, 8, 3]
        video = video.unflatten(1 + 2 * i, (-1, side))
    return video.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)


def main(path: str, steps: int) -> None:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    grid = (4, 8, 12)
    clip = read_clip(path)
    model = VideoDiT(dim=128, heads=2, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        clean = crops([clip], 2, grid, random)
        sparsity = sparsity_at(step, interval=2)
        loss = model.loss(clean, torch.rand(2), torch.randn_like(clean), grid, sparsity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3}  sparsity {sparsity:.2f}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
