#!/usr/bin/env python3
"""Draws gpu_stages_bench's `attend` and layer over sparsity and over tokens, and names neighbouring
points above 32k tokens that lie more than a tenth apart in TFLOP/s.

    gpu_stages_bench --stages attend,forward --problems 33k --sparsity 0,0.125,... --json A.json
    gpu_stages_bench --stages attend,forward --problems 8x32x32 12x32x32 ... --json B.json
    bench/plot_sweep.py A.json B.json -o PLOT.svg      (needs matplotlib)
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "vidsparse"  # the same file from the same record
from matplotlib import pyplot  # noqa: E402

STAGES = {"attend": "attend", "forward with gate": "whole layer with gate"}


def curve(records: list[dict], stage: str, over: str) -> list[tuple[float, float]]:
    """(value of `over`, TFLOP/s), ascending."""
    return sorted((r[over], r["tflop_per_s"]) for r in records if r["stage"] == stage)


def leaps(points: list[tuple[float, float]]) -> list[str]:
    """Neighbours whose rates differ by more than a tenth of the higher one."""
    return [
        f"{a:g}: {rate:.0f}, {b:g}: {later:.0f}"
        for (a, rate), (b, later) in itertools.pairwise(points)
        if min(rate, later) < 0.9 * max(rate, later)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sparsity", type=pathlib.Path)
    parser.add_argument("tokens", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    by_sparsity, by_tokens = (
        json.loads(path.read_text()) for path in (options.sparsity, options.tokens)
    )

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4), sharey=True, layout="constrained"
    )
    for stage, label in STAGES.items():
        points = curve(by_sparsity["records"], stage, "sparsity")
        left.plot(*zip(*points, strict=True), marker=".", label=label)
        for found in leaps(points):
            print(f"{stage} over sparsity: {found}")
        points = curve(by_tokens["records"], stage, "tokens")
        right.plot([t / 1000 for t, _ in points], [r for _, r in points], marker=".", label=label)
        for found in leaps([(t, r) for t, r in points if t >= 32_000]):
            print(f"{stage} over tokens: {found}")
    shape = by_sparsity["records"][0]
    left.set(
        xlabel="sparsity",
        ylabel="TFLOP/s over the selected pairs of tiles",
        title=f"{shape['tokens']:,} tokens, {shape['heads']} heads",
    )
    left.set_ylim(bottom=0)
    shape = by_tokens["records"][0]
    right.set(
        xlabel="thousand tokens",
        title=f"sparsity {shape['sparsity']:g}, {shape['heads']} heads",
        xscale="log",
    )
    right.set_xticks([8, 16, 32, 64, 128, 256], labels=["8", "16", "32", "64", "128", "256"])
    right.legend()
    figure.suptitle(f"{by_sparsity['device']}, bf16, D = 128, tiles of 4x4x4, random selection")
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
