#!/usr/bin/env python3
"""Dense attention against Video Sparse Attention in training: a small video DiT (30 million
parameters, 6144 tokens a sample) learns real clips, each kind of attention with several seeds.

    bench/loss_curve.py --clips A.mp4,... --held-out B.mp4 [--seeds 0,1,2] [--json FILE]

Sparsity ramps as in the paper: 0.03 more every `--interval` steps, up to 0.9. Two controls tell
what a gap comes from: `ungated`, the same without the pooled branch, and `gated`, the pooled branch
beside dense attention (sparsity 0). All kinds see the same crops, times and noise for a seed. The
held-out loss is a mean over fixed crops, times and noise. Figures: loss by step, median step time
at the end, peak memory; plot_loss_curve.py draws them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator

import torch

import vidsparse

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples" / "python"))
from train_step import sparsity_at
from video_dit import VideoDiT, crops, read_clip

ATTENTIONS = ("dense", "sparse", "gated", "ungated")


class HeldOut:
    """The same crops for every run, each at several times."""

    TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)

    def __init__(self, clip: torch.Tensor, options: argparse.Namespace):
        self.options = options
        random = torch.Generator().manual_seed(12345)
        self.clean = crops([clip], options.held_out_crops, options.grid, random)
        noise = torch.Generator(clip.device).manual_seed(12345)
        self.noise = torch.empty_like(self.clean).normal_(generator=noise)

    @torch.no_grad()
    def loss(self, model: VideoDiT, sparsity: float | None) -> float:
        losses = []
        for at in self.TIMES:
            for start in range(0, len(self.clean), self.options.batch):
                part = slice(start, start + self.options.batch)
                when = torch.full_like(self.clean[part, 0, 0], at)
                with autocast(self.clean.device):
                    losses.append(
                        model.loss(
                            self.clean[part], when, self.noise[part], self.options.grid, sparsity
                        )
                    )
        return torch.stack(losses).mean().item()


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def train(
    run: dict, clips: list[torch.Tensor], held: HeldOut, options: argparse.Namespace
) -> Iterator[None]:
    """One run, which names its attention (of ATTENTIONS) and its seed; pauses after each held-out
    loss, with what was measured so far in `run`."""
    device, seed = clips[0].device, run["seed"]
    torch.manual_seed(seed)
    model = VideoDiT(options.dim, options.dim // 64, options.depth).to(device)
    if run["attention"] == "ungated":
        for block in model.blocks:
            block.attention.to_gate_compress = None
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), fused=True
    )
    random = torch.Generator().manual_seed(seed)
    draws = torch.Generator(device).manual_seed(seed)
    run |= dict(train=[], held_out=[], step_ms=[])
    run["parameters"] = sum(p.numel() for p in model.parameters())
    losses = []
    begin = time.perf_counter()
    for step in range(options.steps + 1):
        sparsity = {"dense": None, "gated": 0.0}.get(
            run["attention"], sparsity_at(step, interval=options.interval)
        )
        if step % options.every == 0:
            if losses:
                run["train"].append([step, torch.stack(losses).mean().item()])  # waits for the GPU
                run["step_ms"].append((time.perf_counter() - begin) * 1e3 / len(losses))
                last = run["step_ms"][-max(1, len(run["step_ms"]) // 4) :]
                run["step_ms_at_the_end"] = statistics.median(last)
            if device.type == "cuda" and step > 0:
                run["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            run["held_out"].append([step, held.loss(model, sparsity)])
            yield
            losses = []
            if device.type == "cuda" and step == 0:
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
        if step == options.steps:
            break
        clean = crops(clips, options.batch, options.grid, random)
        noise = torch.empty_like(clean).normal_(generator=draws)
        when = torch.empty_like(clean[:, 0, 0]).normal_(generator=draws).sigmoid()
        for group in optimizer.param_groups:
            warm, cool = (step + 1) / options.warm_up, (options.steps - step) / options.cool_down
            group["lr"] = options.learning_rate * min(1, warm, cool)
        with autocast(device):
            loss = model.loss(clean, when, noise, options.grid, sparsity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())


def parse_grid(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", required=True, help="videos to learn, comma-separated")
    parser.add_argument("--held-out", required=True, help="video to judge by")
    parser.add_argument("--attentions", default="dense,sparse", help=f"of {', '.join(ATTENTIONS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--interval", type=int, default=30, help="steps between rises of sparsity")
    parser.add_argument("--every", type=int, default=50, help="steps between held-out losses")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--held-out-crops", type=int, default=16)
    parser.add_argument("--grid", type=parse_grid, default=(16, 16, 24), help="tokens, TxHxW")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--cool-down", type=int, default=300)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    attentions = options.attentions.split(",")
    if unknown := set(attentions) - set(ATTENTIONS):
        parser.error(f"--attentions: expected some of {', '.join(ATTENTIONS)}, got {unknown}")

    device = torch.device(options.device)
    clips = [read_clip(path).to(device) for path in options.clips.split(",")]
    held = HeldOut(read_clip(options.held_out).to(device), options)
    problem = dict(grid=options.grid, heads=options.dim // 64, head_dim=64, dtype=torch.bfloat16)
    record = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "vidsparse": importlib.metadata.version("vidsparse"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "plan": str(vidsparse.plan(**problem, sparsity=0.9, device=device)),
        "options": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "runs": [],
    }
    for seed in map(int, options.seeds.split(",")):
        for attention in attentions:
            run = {"attention": attention, "seed": seed}
            record["runs"].append(run)
            for _ in train(run, clips, held, options):
                if options.json:
                    options.json.write_text(json.dumps(record, indent=1) + "\n")
            print(
                f"{attention} seed {seed}: held-out {run['held_out'][-1][1]:.4f}, "
                f"{run['step_ms_at_the_end']:.1f} ms a step, peak {run.get('peak_mib', 0):.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
