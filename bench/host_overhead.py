"""Host time of a call of the PyTorch package with its plan cached, before kernels work.

    python bench/host_overhead.py [--device cuda] [--part inference] [--json FILE]

On the CPU the sequence is empty, so that no kernel has work; on a GPU calls are only enqueued, on
one tile, and no more of them in a row than the driver's queue of launches holds: beyond that the
host would wait for the GPU. Median of rounds, microseconds of wall clock on one thread. The peer is
torch's own scaled_dot_product_attention on the same tensors.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import time

import torch

import vidsparse

ROUNDS, CALLS = 60, 40  # CALLS times the kernels of one stay well below the 1024 of the queue


def microseconds(calls, device):
    """Median over rounds of the mean time of each call; the calls take turns."""
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            with torch.set_grad_enabled("training" in name):
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(device, part):
    tokens, grid = (0, (0, 4, 4)) if device.type == "cpu" else (64, (4, 4, 4))
    q, k, v, gate = (torch.randn(1, tokens, 1, 64, device=device).bfloat16() for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    dout = torch.randn_like(q)
    first = [x.transpose(1, 2) for x in (q, k, v)]
    kwargs = dict(grid=grid, sparsity=0.9)

    def inference():
        vidsparse.video_sparse_attention(q, k, v, **kwargs)

    def gated():
        vidsparse.video_sparse_attention(q, k, v, gate=gate, **kwargs)

    def training():
        return vidsparse.video_sparse_attention(*leaves[:3], gate=leaves[3], **kwargs)

    def step():
        torch.autograd.grad(training(), leaves, dout)

    def peer():
        torch.nn.functional.scaled_dot_product_attention(*first)

    calls = {}
    if part != "training":
        calls |= {
            "inference": inference,
            "inference, gate": gated,
            "torch SDPA, inference": peer,
        }
    if part != "inference":
        calls |= {"training forward, gate": training, "training step, gate": step}
    return microseconds(calls, device)


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", choices=("all", "inference", "training"), default="all")
    parser.add_argument("--json", help="write the record here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    results = measure(device, arguments.part)
    for name, value in results.items():
        print(f"{name:24} {value:6.1f} us")
    if arguments.json:
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        record = dict(
            what="host time of a call", cpu=cpu_name(), gpu=gpu, torch=torch.__version__,
            python=platform.python_version(), vidsparse=vidsparse.info().version,
            date=datetime.date.today().isoformat(), rounds=ROUNDS, calls=CALLS,
            microseconds=results,
        )  # fmt: skip
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
