#!/usr/bin/env python3
"""Rates of the backend `sm80` beside torch's dense FlashAttention-2, made of the same instructions.

    bench/bench_flash.py --bench build/release/bench/gpu/gpu_stages_bench [--problems 33k,123k]
                         [--backend sm80] [--json FILE]

For each problem gpu_stages_bench runs, then torch in this process, on the same GPU; TFLOP/s count
the work done (backward: five products for the forward's two).
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import subprocess
import tempfile

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def stages(options: argparse.Namespace, problem: str) -> list[dict]:
    """What gpu_stages_bench says of attend and backward."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [options.bench, "--backend", options.backend, "--problems", problem,
                   "--stages", "attend,backward", "--seconds", str(options.seconds),
                   "--json", file.name]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(file.name).read_text())["records"]


def median_ms(call, seconds: float) -> float:
    """Of GPU time, three runs at least, after one more."""
    call()
    times: list[float] = []
    while sum(times) < seconds * 1e3 or len(times) < 3:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def flash(tokens: int, heads: int, seconds: float) -> dict[str, float]:
    """Dense TFLOP/s, forward and backward, head_dim 128."""
    q, k, v = (
        torch.randn(1, heads, tokens, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    )
    work = 4 * tokens**2 * 128 * heads * 1e-9
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.no_grad():
            forward = median_ms(lambda: scaled_dot_product_attention(q, k, v), seconds)
        out = scaled_dot_product_attention(q, k, v)
        dout = torch.randn_like(out)
        backward = median_ms(
            lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), seconds
        )
    return {"attend": work / forward, "backward": 2.5 * work / backward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True, help="gpu_stages_bench")
    parser.add_argument("--problems", default="33k,123k")
    parser.add_argument("--backend", default="sm80")
    parser.add_argument("--seconds", type=float, default=0.1, help="of each measurement")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    problems = []
    for problem in options.problems.split(","):
        records = stages(options, problem)
        dense = flash(records[0]["tokens"], records[0]["heads"], options.seconds)
        torch.cuda.empty_cache()
        for record in records:
            if "tflop_per_s" not in record:
                continue
            peer = dense[record["stage"].split()[0]]
            record["of_flash_dense"] = record["tflop_per_s"] / peer
            print(f"{problem:12s} {record['stage']:32s} {record['ms']:9.3f} ms "
                  f"{record['tflop_per_s']:6.1f} TFLOP/s, {peer:6.1f} dense: "
                  f"{record['of_flash_dense']:.3f}", flush=True)  # fmt: skip
        problems.append({"problem": problem, "flash_dense_tflop_per_s": dense, "records": records})
    if options.json:
        header = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                  "backend": options.backend,
                  "date": datetime.datetime.now(datetime.timezone.utc).isoformat()}  # fmt: skip
        options.json.write_text(json.dumps({**header, "problems": problems}, indent=1) + "\n")


if __name__ == "__main__":
    main()
