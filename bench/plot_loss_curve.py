#!/usr/bin/env python3
"""Draws what loss_curve.py recorded: held-out loss and step time, and says how far apart they end.

    bench/plot_loss_curve.py RECORD.json... [--times RECORD.json] -o PLOT.svg   (needs matplotlib)

Runs may lie in several records (processes that shared a GPU); step times and memory then come from
a record of their own, taken alone.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "vidsparse"  # the same file from the same record
from matplotlib import pyplot  # noqa: E402

LABELS = {
    "dense": "dense attention (torch SDPA)",
    "sparse": "Video Sparse Attention, 0 to 90 %",
    "gated": "dense attention and the pooled branch",
    "ungated": "VSA without the pooled branch",
}
COLORS = {"dense": "tab:gray", "sparse": "tab:blue", "gated": "tab:orange", "ungated": "tab:green"}


def held_out(run: dict) -> list[float]:
    return [loss for _, loss in run["held_out"]]


def end_of(run: dict) -> float:
    """Mean of the last three held-out losses, past the learning rate's fall."""
    return statistics.mean(held_out(run)[-3:])


def runs_of(paths: list[pathlib.Path], attention: str) -> list[dict]:
    runs = [run for path in paths for run in json.loads(path.read_text())["runs"]]
    return [run for run in runs if run["attention"] == attention]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("records", type=pathlib.Path, nargs="+")
    parser.add_argument("--times", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    record = json.loads(options.records[0].read_text())
    timed = [options.times] if options.times else options.records

    figure, (losses, times) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ends = {}
    for kind, label in LABELS.items():
        runs = runs_of(options.records, kind)
        if not runs:
            continue
        for run in runs:
            steps, values = zip(*run["held_out"], strict=True)
            losses.plot(steps, values, color=COLORS[kind], alpha=0.35, linewidth=1)
        means = [statistics.mean(v) for v in zip(*(held_out(run) for run in runs), strict=True)]
        losses.plot(steps, means, color=COLORS[kind], label=label)
        ends[kind] = [end_of(run) for run in runs]

        alone = next(iter(runs_of(timed, kind)), None)
        if alone is None:
            continue
        text = f"{alone['step_ms_at_the_end']:.1f} ms at the end, peak {alone['peak_mib']:.0f} MiB"
        steps = [step for step, _ in alone["train"]]
        times.plot(steps, alone["step_ms"], color=COLORS[kind], label=f"{kind}: {text}")
    losses.set(xlabel="step", ylabel="loss on the held-out clip", yscale="log")
    times.set(xlabel="step", ylabel="ms a step", ylim=(0, None))
    losses.legend()
    times.legend()
    figure.suptitle(f"{record['device']}, {record['runs'][0]['parameters'] / 1e6:.0f} M parameters")
    figure.savefig(options.output, metadata={"Date": None})

    sigma = statistics.stdev(ends["dense"])
    print(f"sigma of the dense seeds {sigma:.5f}")
    for kind, values in ends.items():
        gap = statistics.mean(values) - statistics.mean(ends["dense"])
        each = " ".join(f"{v:.5f}" for v in values)
        print(f"{kind}: {each}; gap of the means {gap:+.5f}, {gap / sigma:+.2f} sigma")


if __name__ == "__main__":
    main()
