#!/usr/bin/env python3
"""Times the Triton kernels under candidate shapes on this GPU: where config.py's table comes from.

    bench/triton_sweep.py [--problem 33k] [--kernels attend,select] [--json FILE]

Each stage of the op is timed whole with one kernel's shape exchanged, all candidates in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib

import torch

from triton_case import Case, in_turns
from vidsparse.backends import Lengths, Selection
from vidsparse.triton.config import Shape

WARPS = (4, 8)
CANDIDATES = {  # kernel -> warps, stages, rows, columns, stages of masked loops
    "attend": (WARPS, (2, 3, 4), (64,), (64,), (None,)),
    "key_gradients": (WARPS, (1, 2), (64,), (32, 64), (None,)),
    "query_gradients": (WARPS, (1, 2, 3), (64,), (64,), (None,)),
    "select": (WARPS, (1,), (16, 32), (32, 64), (None,)),
    "coarse": (WARPS, (1,), (16, 32), (64,), (None,)),
}


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
    records = []
    for kernel in options.kernels.split(","):
        stage = stage_of(case, kernel)
        calls = {}
        for sizes in itertools.product(*CANDIDATES[kernel]):
            shape = Shape(*sizes)

            def call(shape=shape, kernel=kernel, stage=stage):
                case.kernels.config = dataclasses.replace(table, **{kernel: shape})
                stage()

            try:
                call()
                torch.cuda.synchronize()
            except Exception as failure:  # too much shared memory is a fact about the candidate
                print(f"{kernel:16} {shape}: {str(failure).strip().splitlines()[-1][:80]}")
                continue
            calls[" ".join(map(str, sizes))] = call
        for name, time in sorted(in_turns(calls, options.rounds, options.rep).items(),
                                 key=lambda item: item[1]):  # fmt: skip
            print(f"{kernel:16} {name:20} {time:8.3f} ms", flush=True)
            records.append({"kernel": kernel, "shape": name, "milliseconds": time})
        case.kernels.config = table
    if options.json:
        device = torch.cuda.get_device_name()
        options.json.write_text(
            json.dumps({"problem": case.name, "device": device, "records": records}, indent=1)
        )


if __name__ == "__main__":
    main()
