"""Training with Video Sparse Attention: sparsity ramps up while a small model learns to denoise.

    python examples/python/train_step.py [STEPS]
"""

import sys

import torch
from torch import nn
from video_block import VideoBlock

GRID = (4, 8, 12)  # frames, height, width of the latent video
TOKENS = 4 * 8 * 12
DIM = 128


def sparsity_at(step: int, interval: int = 4, rate: float = 0.03, target: float = 0.9) -> float:
    """The ramp of the paper: `rate` more every `interval` steps, up to `target`."""
    return min(step // interval, round(target / rate)) * rate


def clean_video(batch: int) -> torch.Tensor:
    """Smooth moving patterns [batch, TOKENS, DIM]: something that can be learned."""
    t, h, w = torch.meshgrid(*(torch.linspace(0, 1, n) for n in GRID), indexing="ij")
    phase = torch.rand(batch, 1, 1) * 6.28
    place = (t + 2 * h + 3 * w).reshape(1, TOKENS, 1)
    return torch.sin(6.28 * place * torch.linspace(0.5, 2, DIM) + phase)


def main(steps: int) -> tuple[float, float]:
    """Returns the mean loss of the first and the last steps."""
    torch.manual_seed(0)
    model = nn.ModuleList([VideoBlock(DIM, heads=2) for _ in range(2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        sparsity = sparsity_at(step)  # an argument of the call: nothing is rebuilt
        video = clean_video(batch=2)
        x = video + 0.7 * torch.randn_like(video)
        for block in model:
            x = block(x, GRID, sparsity)
        loss = (x - video).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3}  sparsity {sparsity:.2f}  loss {losses[-1]:.4f}")
    few = max(1, steps // 10)
    return sum(losses[:few]) / few, sum(losses[-few:]) / few


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
