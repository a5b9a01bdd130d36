#!/usr/bin/env python3
"""Times the Triton kernels under candidate shapes on this GPU: where config.py's table comes from.

    bench/triton_sweep.py [--problem 33k] [--kernels attend,select] [--json FILE]

Each stage of the op is timed whole with one kernel's shape exchanged, all candidates in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

import torch

from triton_case import Case, Stopwatch
from vidsparse.backends import Lengths, Selection
from vidsparse.triton.config import Shape

CANDIDATES = {
    "attend": [Shape(4, 3), Shape(4, 2), Shape(4, 3, columns=32), Shape(4, 2, columns=32)],
    "key_gradients": [Shape(4, 2), Shape(4, 2, columns=32), Shape(4, 3, columns=32)],
    "query_gradients": [Shape(4, 2), Shape(4, 2, columns=32), Shape(4, 3, columns=32)],
    "select": [
        Shape(4, 1, 32, search=8192),
        Shape(4, 1, 16, search=8192),
        Shape(8, 1, 32, search=16384),
        Shape(8, 1, 16),
    ],
    "coarse": [Shape(4, 1, 32), Shape(8, 1, 32), Shape(4, 1, 16)],
}


def name_of(shape: Shape) -> str:
    """What differs from the defaults."""
    return str(
        {
            field.name: getattr(shape, field.name)
            for field in dataclasses.fields(Shape)
            if getattr(shape, field.name) != field.default
        }
    )


def stage_of(case: Case, kernel: str):
    """The smallest call that runs the kernel."""
    if kernel == "attend":
        return case.attend
    if kernel in ("key_gradients", "query_gradients"):
        case.attend()
        return case.attend_backward
    qc, kc, vc = (torch.empty_like(case.coarse[0]) for _ in range(3))
    case.kernels.pool(case.q, case.k, case.v, Lengths(), qc, kc, vc)
    if kernel == "select":
        return lambda: case.kernels.select(
            qc, kc, vc, Lengths(), Selection(case.top_k), case.scale, case.mask, *case.coarse
        )
    oc, top, total = case.coarse
    return lambda: case.kernels._coarse_backward(
        case.q, case.k, case.v, Lengths(), case.scale, oc, qc, top, total, case.kernels._empty
    )


def sweep(case: Case, watch: Stopwatch, kernels: list[str], rounds: int) -> list[dict]:
    """Times every candidate; the case's kernels keep the best of each."""
    records = []
    for kernel in kernels:
        table = case.kernels.config
        stage = stage_of(case, kernel)
        calls, shapes = {}, {}
        for shape in CANDIDATES[kernel]:

            def call(shape=shape, kernel=kernel, stage=stage, table=table):
                case.kernels.config = dataclasses.replace(table, **{kernel: shape})
                stage()

            try:
                call()
                torch.cuda.synchronize()
            except Exception as failure:  # too much shared memory is a fact about the candidate
                print(f"{kernel:16} {shape}: {str(failure).strip().splitlines()[-1][:80]}")
                continue
            calls[name_of(shape)], shapes[name_of(shape)] = call, shape
        times = watch.in_turns(calls, rounds)
        order = sorted(times, key=times.__getitem__)
        for name in order:
            print(f"{kernel:16} {times[name]:8.3f} ms  {name}", flush=True)
            records.append({"kernel": kernel, "shape": name, "milliseconds": times[name]})
        case.kernels.config = dataclasses.replace(table, **{kernel: shapes[order[0]]})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="33k")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--kernels", default=",".join(CANDIDATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    case = Case(options.problem, options.sparsity)
    device = torch.cuda.get_device_name()
    print(case.name, options.sparsity, "sparse,", case.pairs, "pairs,", device)
    watch = Stopwatch(case.q.device)
    records = sweep(case, watch, options.kernels.split(","), options.rounds)
    if options.json:
        record = {"problem": case.name, "device": device, "records": records}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
