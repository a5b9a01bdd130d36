#!/usr/bin/env python3
"""Our CPU kernels beside torch's in one process: a table on the screen, JSON in bench/results/.

Every figure is the median over rounds in which all contestants take turns, so that a slow minute
of the machine meets all of them. Throughput is over the work done: 4*S*S*D FLOP a head for dense,
4*64*64*D for every selected pair of tiles for sparse, 2.5 times that backward. Pad-free grids.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

import rich.console
import rich.table
import torch

from c_interface import Library
from sparse_run import SparseRun
from torch_peers import BlockAttention, DenseAttention, tile_order

HERE = pathlib.Path(__file__).resolve().parent
DIM = 128
SCALED = ("attend", "forward")
MATMUL = 4096  # side of the product that says what the machine gives at best
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PROBLEMS = {  # name -> heads, grid of whole 4x4x4 tiles
    "8k": (12, (16, 16, 32)),
    "16k": (2, (16, 32, 32)),
    "33k": (12, (20, 32, 52)),
    "tiny": (2, (8, 8, 16)),
}


def cpu_name():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        text = lines.read()
    model = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"flags\s*: (.*)", text)
    kept = [flag for flag in (flags.group(1).split() if flags else [])
            if flag.startswith(("amx", "avx512_bf16", "avx512_fp16", "avx512f", "avx2", "fma"))]
    return (model.group(1) if model else platform.machine()), kept


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(contestants, rounds):
    """Median seconds of each; one round of warm-up, every other round in reverse order."""
    times = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    for turn in range(rounds):
        order = list(contestants)
        for name in order if turn % 2 == 0 else reversed(order):
            times[name].append(seconds_of(contestants[name]))
    return {name: statistics.median(values) for name, values in times.items()}


class Bench:
    def __init__(self, options):
        self.options = options
        self.library = Library(options.library, options.threads_library)
        name, flags = cpu_name()
        self.device = {"cpu": name, "flags": flags, "threads": options.threads}
        self.versions = {"vidsparse": self.library.version, "torch": torch.__version__}
        self.records = []
        # A file or a pipe has no width of its own; 80 columns would break every row.
        self.console = rich.console.Console(width=None if sys.stdout.isatty() else 100)

    def record(self, problem, ours, peer, ratio, what):
        self.records.append({
            "what": what, "problem": problem, "device": dict(self.device),
            "versions": self.versions, "rounds": self.options.rounds,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "ours": ours, "peer": peer, "ratio": ratio})

    def flex(self, grid, headed, ours):
        """Compiled FlexAttention on our selection, or why there is none."""
        try:
            peer = BlockAttention(*(tile_order(x, grid) for x in headed), ours.selected())
            found = peer.forward()
        except Exception as failure:  # a compiler missing, an unsupported case: torch's own words
            return None, str(failure).strip().splitlines()[0][:200]
        expected = tile_order(ours.plain_out.transpose(1, 2).contiguous(), grid)
        difference = (found.float() - expected.float()).abs().max().item()
        if not difference < 0.05:
            raise RuntimeError(f"FlexAttention: expected our results, got ones {difference} away")
        return peer, None

    def run_problem(self, name, dtype):
        heads, grid = PROBLEMS[name]
        options = self.options
        tokens = grid[0] * grid[1] * grid[2]
        q, k, v, gate, dout = (
            torch.randn(1, tokens, heads, DIM).to(DTYPES[dtype]) for _ in range(5)
        )
        plan = self.library.plan(grid, heads, DIM, dtype, options.threads, options.backend)
        single = self.library.plan(grid, heads, DIM, dtype, 1, options.backend)
        self.device["isa"] = plan.detail
        ours = SparseRun(plan, q, k, v, gate, dout, options.sparsity)
        alone = SparseRun(single, q, k, v, gate, dout, options.sparsity)
        for stage in ours.stages:  # each leaves what the next one reads
            ours.run(stage)
            if stage in ("pool", "select", "attend", "forward"):
                alone.run(stage)
        results = (ours.out, ours.plain_out, *ours.gradients)
        if (not all(torch.isfinite(x).all() for x in results) or
                not torch.equal(ours.out, alone.out)):
            raise RuntimeError(f"{name} {dtype}: expected finite results that do not depend on "
                               "the number of threads, got others")
        pairs = int(ours.selected().sum())
        work = {"dense": 4 * tokens * tokens * DIM * heads, "sparse": 4 * 64 * 64 * DIM * pairs}

        headed = [x.transpose(1, 2).contiguous() for x in (q, k, v, dout)]
        dense = DenseAttention(*headed)
        dense.record()
        square = torch.randn(MATMUL, MATMUL).to(DTYPES[dtype])
        contestants = {"dense": dense.forward, "dense backward": dense.backward,
                       "matmul": lambda: square @ square}
        for stage in ours.stages:
            contestants[stage] = lambda stage=stage: ours.run(stage)
        for stage in SCALED:
            contestants[f"{stage}, one thread"] = lambda stage=stage: alone.run(stage)
        flex, reason = (None, "--no-flex") if options.no_flex else self.flex(grid, headed[:3], ours)
        if flex is not None:
            contestants["flex"] = flex.forward
        seconds = interleaved(contestants, options.rounds)

        problem = {"name": name, "grid": list(grid), "tokens": tokens, "heads": heads,
                   "head_dim": DIM, "dtype": dtype, "sparsity": options.sparsity,
                   "tile_pairs": pairs, "gate": "tensor (forward, backward)"}
        self.report(problem, seconds, work, ours.stages, flex, reason)

    def report(self, problem, seconds, work, stages, flex, reason):
        dense_work, sparse_work = work["dense"] / 1e9, work["sparse"] / 1e9
        rate = {"dense": dense_work / seconds["dense"],
                "dense backward": 2.5 * dense_work / seconds["dense backward"]}
        table = rich.table.Table(
            title=f"{problem['heads']} heads x {problem['tokens']} x {DIM}, {problem['dtype']}, "
                  f"{problem['sparsity']:.0%} sparse, {self.device['isa']}, "
                  f"{self.device['threads']} threads")
        for column in ("", "ms", "GFLOP/s", "throughput / dense", "faster than dense"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for name in ("dense", "dense backward"):
            table.add_row(f"torch SDPA {name}", f"{seconds[name] * 1e3:.1f}", f"{rate[name]:.0f}",
                          "", "")
        matmul = {"name": f"torch matmul, {MATMUL} x {MATMUL} x {MATMUL}",
                  "seconds": seconds["matmul"], "gflops": 2e-9 * MATMUL**3 / seconds["matmul"]}
        table.add_row("torch matmul", f"{seconds['matmul'] * 1e3:.1f}", f"{matmul['gflops']:.0f}",
                      "", "")
        for stage in stages:
            backward = stage.endswith("backward")
            base = "dense backward" if backward else "dense"
            ours = {"call": stage, "seconds": seconds[stage]}
            cells = ["", "", ""]
            faster = seconds[base] / seconds[stage]
            peer = {"name": f"torch SDPA, {base}", "seconds": seconds[base],
                    "gflops": rate[base]}
            if stage not in ("pool", "select"):
                ours["gflops"] = sparse_work * (2.5 if backward else 1) / seconds[stage]
                cells = [f"{ours['gflops']:.0f}", f"{ours['gflops'] / rate[base]:.2f}",
                         f"{faster:.2f}"]
                self.record(problem, ours, peer, ours["gflops"] / rate[base], "throughput")
                self.record(problem, ours, peer, faster, "speed-up")
                self.record(problem, ours, matmul, ours["gflops"] / matmul["gflops"], "throughput")
            table.add_row(stage, f"{seconds[stage] * 1e3:.1f}", *cells)
        share = (seconds["pool"] + seconds["select"]) / seconds["forward"]
        self.record(problem, {"call": "pool + select",
                              "seconds": seconds["pool"] + seconds["select"]},
                    {"name": "ours, forward", "seconds": seconds["forward"]}, share, "share")
        table.add_row("pool + select", "", "", "", f"{share:.1%} of forward")
        for stage in SCALED:
            one = seconds[f"{stage}, one thread"]
            self.record(problem, {"call": stage, "seconds": seconds[stage]},
                        {"name": f"ours, {stage}, one thread", "seconds": one},
                        one / seconds[stage], "scaling")
            table.add_row(f"{stage}, one thread", f"{one * 1e3:.1f}", "",
                          "", f"scaling {one / seconds[stage]:.2f}")
        if flex is None:
            table.add_row("FlexAttention: none", "", "", "", reason)
            self.record(problem, None, {"name": BlockAttention.name, "skipped": reason}, None,
                        "speed-up")
        else:
            ratio = seconds["flex"] / seconds["attend"]
            table.add_row(flex.name, f"{seconds['flex'] * 1e3:.1f}",
                          f"{sparse_work / seconds['flex']:.0f}", "",
                          f"attend is {ratio:.2f}x")
            self.record(problem, {"call": "attend", "seconds": seconds["attend"]},
                        {"name": flex.name, "seconds": seconds["flex"]}, ratio, "speed-up")
        self.console.print(table)

    def memory(self, name, grid, heads):
        """In a process of its own: the peak resident set of torch would hide ours."""
        command = [sys.executable, str(HERE / "peak_memory.py"),
                   "--library", self.options.library,
                   "--threads-library", self.options.threads_library,
                   "--grid", "x".join(map(str, grid)), "--heads", str(heads),
                   "--sparsity", str(self.options.sparsity),
                   "--threads", str(self.options.threads), "--backend", self.options.backend]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            self.console.print(f"memory {name}: {found.stderr.strip().splitlines()[-1]}")
            return
        result = json.loads(found.stdout)
        self.device["isa"] = result["isa"]
        problem = {"name": name, "grid": list(grid), "tokens": result["tokens"], "heads": heads,
                   "head_dim": DIM, "dtype": "bf16", "sparsity": self.options.sparsity,
                   "gate": "tensor"}
        self.record(problem, {"call": "forward", "extra_bytes": result["extra_bytes"],
                              "workspace_bytes": result["workspace_bytes"],
                              "seconds": result["seconds"]},
                    {"name": "q + k + v", "bytes": result["qkv_bytes"]},
                    result["share_of_qkv"], "extra memory")
        self.console.print(
            f"extra memory, {name} x {heads} heads, bf16 forward: "
            f"{result['extra_bytes'] / 2**20:.0f} MiB = {result['share_of_qkv']:.1%} of q+k+v "
            f"(workspace {result['workspace_bytes'] / 2**20:.0f} MiB), "
            f"{result['seconds']:.1f} s")

    def write(self):
        slug = re.sub(r"[^a-z0-9]+", "-", self.device["cpu"].lower()).strip("-")
        folder = pathlib.Path(self.options.results)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"cpu-{slug}-{self.device['isa']}-{datetime.date.today()}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.records, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
        self.console.print(f"{len(self.records)} records in {path}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help="libvidsparse.so")
    parser.add_argument("--threads-library", help="default: bench/threads/ beside the library")
    parser.add_argument("--problems", default="8k,16k",
                        help=", ".join(PROBLEMS) + "; none: memory only")
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out")
    parser.add_argument("--no-memory", action="store_true", help="leave extra memory out")
    parser.add_argument("--large", action="store_true", help="also run 123k tokens x 24 heads once")
    parser.add_argument("--results", default=str(HERE / "results"))
    options = parser.parse_args()
    if options.threads_library is None:
        options.threads_library = str(pathlib.Path(options.library).resolve().parent / "bench" /
                                      "threads" / "libvidsparse_bench_threads.so")
    for given, known in ((options.problems, PROBLEMS), (options.dtypes, DTYPES)):
        for name in given.split(","):
            if name not in known and given != "none":
                parser.error(f"expected one of {', '.join(known)}, got {name}")
    return options


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    for name in options.problems.split(",") if options.problems != "none" else ():
        for dtype in options.dtypes.split(","):
            bench.run_problem(name, dtype)
    if not options.no_memory:
        bench.memory("33k", (20, 32, 52), 12)
    if options.large:
        bench.memory("123k", (32, 48, 80), 24)
    bench.write()


if __name__ == "__main__":
    main()
