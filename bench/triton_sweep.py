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

from triton_case import Case, in_turns
from vidsparse.backends import Lengths, Selection
from vidsparse.triton.config import Shape

CANDIDATES = {
    "attend": [
        Shape(4, 3),
        Shape(4, 3, columns=32),
        Shape(4, 3, columns=32, registers=168),
        Shape(4, 2, columns=32, registers=168),
        Shape(4, 2, columns=32, registers=128),
    ],
    "key_gradients": [
        Shape(4, 2),
        Shape(4, 2, columns=32),
        Shape(4, 3, columns=32),
        Shape(4, 3, columns=16),
        Shape(8, 2),
    ],
    "query_gradients": [
        Shape(4, 2),
        Shape(4, 2, columns=32, registers=168),
        Shape(4, 3, columns=32, registers=168),
        Shape(4, 1, columns=32, registers=168),
    ],
    "select": [
        Shape(4, 1, 32),
        Shape(4, 2, 32),
        Shape(4, 1, 32, search=8192),
        Shape(8, 1, 32, search=16384),
        Shape(8, 1, 16, search=16384),
    ],
    "coarse": [Shape(4, 1, 32), Shape(4, 2, 32), Shape(4, 1, 16)],
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
        case.q, case.k, case.v, Lengths(), case.scale, oc, qc, top, total
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="33k")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--kernels", default=",".join(CANDIDATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rep", type=int, default=20, help="milliseconds a round and candidate")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    case = Case(options.problem, options.sparsity)
    table = case.kernels.config
    print(
        case.name, options.sparsity, "sparse,", case.pairs, "pairs,", torch.cuda.get_device_name()
    )
    records = []
    for kernel in options.kernels.split(","):
        stage = stage_of(case, kernel)
        calls = {}
        for shape in CANDIDATES[kernel]:

            def call(shape=shape, kernel=kernel, stage=stage):
                case.kernels.config = dataclasses.replace(table, **{kernel: shape})
                stage()

            try:
                call()
                torch.cuda.synchronize()
            except Exception as failure:  # too much shared memory is a fact about the candidate
                print(f"{kernel:16} {shape}: {str(failure).strip().splitlines()[-1][:80]}")
                continue
            calls[name_of(shape)] = call
        for name, time in sorted(in_turns(calls, options.rounds, options.rep).items(),
                                 key=lambda item: item[1]):  # fmt: skip
            print(f"{kernel:16} {time:8.3f} ms  {name}", flush=True)
            records.append({"kernel": kernel, "shape": name, "milliseconds": time})
        case.kernels.config = table
    if options.json:
        device = torch.cuda.get_device_name()
        options.json.write_text(
            json.dumps({"problem": case.name, "device": device, "records": records}, indent=1)
        )


if __name__ == "__main__":
    main()
