#!/usr/bin/env python3
"""Our Triton backend beside PyPI's fastvideo-kernel (its Triton path) and torch's dense attention.

    bench/bench_triton.py [--problems 33k,wan14b-720p,123k] [--json FILE]

All contestants take turns on one GPU in one process; figures are medians of GPU time in ms. The
peer's layer is its host's: gather q, k, v and gate into padded tiles, copy to [B, H, S, D],
`video_sparse_attn`, gather back. Extra memory is the peak beyond inputs, outputs and gradients.
The peer tunes its forward at the first problem and keeps that choice. --sweep measures candidates
after the first problem, and the others take its choice instead of the table's. Compilation takes
most of the time: several processes with --warm I/N before the run share it out, through Triton's
cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib

os.environ["FASTVIDEO_VSA_TRITON"] = "1"  # the peer's Triton kernels, whatever else it has

import torch
import triton

from triton_case import Case, Stopwatch
from triton_check import Check
from triton_sweep import CANDIDATES, stage_of, sweep

try:
    import fastvideo_kernel as peer_package
    from fastvideo_kernel.block_sparse_attn import block_sparse_attn_backward_triton
    from fastvideo_kernel.triton_kernels.block_sparse_attn_triton import (
        _attn_fwd_sparse,
        triton_block_sparse_attn_forward,
    )
except ImportError as missing:
    peer_package, why_no_peer = None, str(missing)


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Peer:
    """fastvideo-kernel on the same tensors and, for its kernel alone, the same map."""

    def __init__(self, case: Case):
        self.case = case
        meta = peer_package.build_vsa_metadata(case.grid, (4, 4, 4), case.q.device)
        self.order = meta["tile_partition_indices"]
        self.back = meta["reverse_tile_partition_indices"]
        self.sizes = meta["variable_block_sizes"].to(torch.int32)
        self.slots = meta["non_pad_index"]
        self.tiled = [self.tile(x).transpose(1, 2).contiguous()
                      for x in (case.q, case.k, case.v, case.dout)]  # fmt: skip
        counts = case.map.sum(-1, dtype=torch.int32)
        index = case.map.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        self.lists = index[..., : int(counts.max())].to(torch.int32).contiguous(), counts
        self.result = triton_block_sparse_attn_forward(*self.tiled[:3], *self.lists, self.sizes)

    def tile(self, x: torch.Tensor) -> torch.Tensor:
        """[B, tokens, H, D] into padded tiles [B, tiles * 64, H, D]."""
        padded = x.new_zeros(x.shape[0], len(self.sizes) * 64, *x.shape[2:])
        padded[:, self.slots] = x[:, self.order]
        return padded

    def untile(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `tile`."""
        return x[:, self.slots][:, self.back]

    def attend(self) -> None:
        triton_block_sparse_attn_forward(*self.tiled[:3], *self.lists, self.sizes)

    def attend_backward(self) -> None:
        q, k, v, dout = self.tiled
        block_sparse_attn_backward_triton(dout, q, k, v, *self.result, *self.lists, self.sizes)

    def layer(self, q, k, v, gate) -> torch.Tensor:
        """Raster in, raster out."""
        tiled = self.tile(torch.cat((q, k, v, gate)))
        q, k, v, gate = (x.transpose(1, 2).contiguous() for x in tiled.chunk(4))
        out = peer_package.video_sparse_attn(
            q, k, v, self.sizes, self.sizes, self.case.top_k, (4, 4, 4), gate
        )
        return self.untile(out.transpose(1, 2))

    def agreement(self) -> float:
        """Largest difference of our `attend` and its kernel on the same map."""
        return (self.untile(self.result[0].transpose(1, 2)) - self.case.out).abs().max().item()


def extra_mib(call, kept: int) -> float | None:
    """Peak of a call beyond what is allocated now and the `kept` bytes of its results."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - kept) / 2**20


def checked(case: Case) -> dict[str, float]:
    """Errors as a share of plain arithmetic's (2 is allowed), of the bound for oc and selection."""
    check = Check(case)
    check.selection()
    case.attend()
    check.attend()
    case.attend_backward()
    check.attend_backward()
    return check.worst


def measure(name: str, options: argparse.Namespace, shapes: dict) -> dict:
    """Every figure of one problem. `shapes` are kept from problem to problem."""
    case = Case(name, options.sparsity, options.device, DTYPES[options.dtype])
    watch = Stopwatch(case.q.device)
    record = {"problem": name, "tokens": case.tokens, "heads": case.heads, "tiles": case.tiles,
              "pairs": case.pairs, "sparsity": case.sparsity, "dtype": options.dtype}  # fmt: skip
    case.kernels.config = shapes.get("ours", case.kernels.config)
    record["shapes"] = str(case.kernels.config)
    if options.check:
        record["error_over_plain"] = checked(case)
        print(name, {k: round(x, 2) for k, x in record["error_over_plain"].items()}, flush=True)

    tensor_bytes = case.q.numel() * case.q.element_size()
    attend, backward = {"ours": case.attend}, {"ours": case.attend_backward}
    layer, layer_backward = {"ours": case.forward}, {"ours": case.backward}
    extra = record["extra_mib"] = {}
    case.attend()
    peer = None
    if peer_package is not None and options.dtype == "bf16" and not case.layout.plain_tiles:
        if "peer" in shapes:
            _attn_fwd_sparse.configs = [shapes["peer"]]
        peer = Peer(case)
        shapes["peer"] = _attn_fwd_sparse.best_config
        record["peer_shape"] = str(shapes["peer"])
        record["difference_on_same_map"] = peer.agreement()
        attend["peer"], backward["peer"] = peer.attend, peer.attend_backward
    if options.dense:
        heads_first = [x.transpose(1, 2) for x in (case.q, case.k, case.v)]
        attend["dense torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(
            *heads_first
        )
    record["forward_ms"] = watch.in_turns(attend, options.rounds)
    case.attend()
    record["backward_ms"] = watch.in_turns(backward, options.rounds)
    extra["forward ours"] = extra_mib(case.forward, 0)
    extra["backward ours"] = extra_mib(case.backward, 0)
    if peer is not None:
        peer.tiled = peer.result = None
        inputs = [x.detach().requires_grad_() for x in (case.q, case.k, case.v, case.gate)]
        layer["peer"] = lambda: peer.layer(case.q, case.k, case.v, case.gate)
        extra["forward peer"] = extra_mib(layer["peer"], tensor_bytes)
        result = peer.layer(*inputs)
        layer_backward["peer"] = lambda: torch.autograd.grad(
            result, inputs, case.dout, retain_graph=True
        )
    record["layer_forward_ms"] = watch.in_turns(layer, options.rounds)
    record["layer_backward_ms"] = watch.in_turns(layer_backward, options.rounds)
    if peer is not None:
        del result, layer_backward["peer"]
        extra["forward and backward peer"] = extra_mib(
            lambda: torch.autograd.grad(peer.layer(*inputs), inputs, case.dout), 4 * tensor_bytes
        )
    if options.sweep and "ours" not in shapes:
        record["sweep"] = sweep(case, watch, list(CANDIDATES), options.rounds)
        shapes["ours"] = case.kernels.config
    record["attend_tflops"] = case.teraflops(record["forward_ms"]["ours"])
    record["attend_backward_tflops"] = case.teraflops(record["backward_ms"]["ours"], True)
    return record


def warm(options: argparse.Namespace) -> None:
    """Compiles a share of what the run will launch."""
    index, count = map(int, options.warm.split("/"))
    first = options.problems.split(",")[0]
    case = Case(first, options.sparsity, options.device, DTYPES[options.dtype])
    jobs = [lambda: (case.forward(), case.backward(), case.attend(), case.attend_backward())]
    if peer_package is not None:
        every = list(_attn_fwd_sparse.configs)
        for config in every:

            def tune(config=config):
                _attn_fwd_sparse.configs = [config]
                Peer(case).attend_backward()

            jobs.append(tune)
    for kernel, shapes in CANDIDATES.items():
        for shape in shapes:

            def launch(kernel=kernel, shape=shape):
                config = case.kernels.config
                case.kernels.config = dataclasses.replace(config, **{kernel: shape})
                try:
                    stage_of(case, kernel)()
                finally:
                    case.kernels.config = config

            jobs.append(launch)
    for job in jobs[index::count]:
        try:
            job()
        except Exception as failure:  # the run will say so where it matters
            print("warm:", str(failure).strip().splitlines()[-1][:100])


def table(records: list[dict]) -> None:
    """Ours and the peer's medians, and their ratio."""
    print(f"{'problem':14} {'what':14} {'ours ms':>9} {'peer ms':>9} {'peer/ours':>9}")
    for record in records:
        for what in ("forward", "backward", "layer_forward", "layer_backward"):
            times = record[f"{what}_ms"]
            ours, peer = times["ours"], times.get("peer")
            ratio = f"{peer:9.3f} {peer / ours:9.2f}" if peer else ""
            print(f"{record['problem']:14} {what:14} {ours:9.3f} {ratio}")
        extra = {what: round(mib) for what, mib in record["extra_mib"].items() if mib is not None}
        print(f"{record['problem']:14} attend {record['attend_tflops']:.0f} TFLOP/s, backward "
              f"{record['attend_backward_tflops']:.0f}; extra MiB {extra}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="33k,wan14b-720p,123k")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="the peer has bf16 only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep", action="store_true", help="sweep shapes after the first problem")
    parser.add_argument("--check", action="store_true", help="sampled tiles against float64")
    parser.add_argument("--dense", action="store_true", help="torch's dense attention too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warm", metavar="I/N", help="only compile the I-th share of N")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    if peer_package is None:
        print("without the peer:", why_no_peer)
    if options.warm:
        warm(options)
        return
    gpu = torch.cuda.is_available()
    header = {"device": torch.cuda.get_device_name() if gpu else "cpu",
              "torch": torch.__version__, "triton": triton.__version__, "rounds": options.rounds,
              "peer": getattr(peer_package, "__version__", None),
              "date": datetime.datetime.now(datetime.UTC).isoformat()}  # fmt: skip
    print(header["device"])
    records, shapes = [], {}
    for name in options.problems.split(","):
        records.append(measure(name, options, shapes))
        if gpu:
            torch.cuda.empty_cache()
        table(records[-1:])
        if options.json:
            options.json.write_text(json.dumps({**header, "problems": records}, indent=1) + "\n")
    print()
    table(records)


if __name__ == "__main__":
    main()
