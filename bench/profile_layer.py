"""Torch's profile of one layer: which kernels a forward and a backward launch.

    python bench/profile_layer.py [--device cuda] [--grid 20 32 52] [--heads 12] [--json FILE]
"""

import argparse
import json
import math

import torch
from torch.profiler import ProfilerActivity, profile

import vidsparse


def profiled(call, device):
    """Name -> [launches, microseconds] of what one call runs: kernels, or operators on the CPU."""
    for _ in range(2):
        call()
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as record:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    table = {}
    for event in record.key_averages():
        time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if time > 0:
            table[event.key] = [event.count, round(time, 1)]
    return dict(sorted(table.items(), key=lambda row: -row[1][1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grid", type=int, nargs=3, default=(20, 32, 52))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--part", choices=("all", "inference", "training"), default="all")
    parser.add_argument("--json", help="write the record here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shape = (1, math.prod(arguments.grid), arguments.heads, 128)
    q, k, v, gate = (torch.randn(shape, device=device).bfloat16() for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    dout = torch.randn_like(q)
    kwargs = dict(grid=tuple(arguments.grid), sparsity=0.9)
    print(vidsparse.plan(heads=arguments.heads, device=device, **kwargs))

    def forward():
        with torch.no_grad():
            vidsparse.video_sparse_attention(q, k, v, gate=gate, **kwargs)

    def step():
        out = vidsparse.video_sparse_attention(*leaves[:3], gate=leaves[3], **kwargs)
        torch.autograd.grad(out, leaves, dout)

    tables = {}
    if arguments.part != "training":
        tables["forward"] = profiled(forward, device)
    if arguments.part != "inference":
        tables["forward and backward"] = profiled(step, device)
    for name, table in tables.items():
        print(f"{name}: {sum(count for count, _ in table.values())} launches")
        for key, (count, time) in table.items():
            print(f"  {count:3} x {time:10.1f} us  {key[:90]}")
    if arguments.json:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        record = dict(
            measurement="profile of one layer, [launches, us]", device=where, shape=shape,
            torch=torch.__version__, **kwargs, tables=tables,
        )  # fmt: skip
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
