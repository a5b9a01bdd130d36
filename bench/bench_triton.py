#!/usr/bin/env python3
"""Our Triton backend beside PyPI's fastvideo-kernel (its Triton path) and torch's dense attention.

    bench/bench_triton.py [--problems 33k,wan14b-720p,123k] [--json FILE]

All contestants take turns on one GPU in one process; figures are medians of GPU time in ms. The
peer's layer is its host's: gather q, k, v and gate into padded tiles, copy to [B, H, S, D],
`video_sparse_attn`, gather back. Extra memory is the peak beyond inputs, outputs and gradients.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib

os.environ["FASTVIDEO_VSA_TRITON"] = "1"  # the peer's Triton kernels, whatever else it has

import torch
import triton

from triton_case import Case, in_turns
from triton_check import Check

try:
    import fastvideo_kernel as peer_package
    from fastvideo_kernel.block_sparse_attn import block_sparse_attn_backward_triton
    from fastvideo_kernel.triton_kernels.block_sparse_attn_triton import (
        triton_block_sparse_attn_forward,
    )
except ImportError as missing:
    peer_package, why_no_peer = None, str(missing)


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
        index = case.map.to(torch.int8).argsort(-1, descending=True, stable=True)
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


def extra_mib(call, kept: int) -> float:
    """Peak of a call beyond what is allocated now and the `kept` bytes of its results."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - kept) / 2**20


def measure(name: str, options: argparse.Namespace) -> dict:
    """Every figure of one problem."""
    case = Case(name, options.sparsity)
    check = Check(case)
    check.selection()
    case.attend()
    check.attend()
    case.attend_backward()
    check.attend_backward()
    record = {"problem": name, "tokens": case.tokens, "heads": case.heads, "tiles": case.tiles,
              "pairs": case.pairs, "sparsity": case.sparsity,
              "error_over_plain": check.worst}  # fmt: skip
    print(name, {what: round(ratio, 2) for what, ratio in check.worst.items()}, flush=True)

    calls = {"attend ours": case.attend}
    backward = {"attend ours": case.attend_backward}
    layer = {"layer ours": case.forward}
    layer_backward = {"layer ours": case.backward}
    tensor_bytes = case.q.numel() * case.q.element_size()
    peer = None
    if peer_package is not None and not case.layout.plain_tiles:
        peer = Peer(case)
        record["difference_on_same_map"] = peer.agreement()
        print(name, "difference to the peer on the same map", record["difference_on_same_map"])
        inputs = [x.detach().requires_grad_() for x in (case.q, case.k, case.v, case.gate)]
        calls["attend peer"] = peer.attend
        backward["attend peer"] = peer.attend_backward
        layer["layer peer"] = lambda: peer.layer(case.q, case.k, case.v, case.gate)
    if options.dense:
        heads_first = [x.transpose(1, 2) for x in (case.q, case.k, case.v)]
        calls["dense torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(
            *heads_first
        )

    record["forward_ms"] = in_turns(calls, options.rounds, options.rep)
    record["layer_forward_ms"] = in_turns(layer, options.rounds, options.rep)
    case.attend()
    record["backward_ms"] = in_turns(backward, options.rounds, options.rep)
    record["extra_mib"] = {"layer ours": extra_mib(case.forward, 0)}
    if peer is not None:
        record["extra_mib"]["layer peer"] = extra_mib(layer["layer peer"], tensor_bytes)
        peer.tiled = peer.result = None
        case.forward()
        result = peer.layer(*inputs)
        layer_backward["layer peer"] = lambda: torch.autograd.grad(
            result, inputs, case.dout, retain_graph=True
        )
    record["layer_backward_ms"] = in_turns(layer_backward, options.rounds, options.rep)
    record["extra_mib"]["layer backward ours"] = extra_mib(case.backward, 0)
    record["attend_tflops"] = case.teraflops(record["forward_ms"]["attend ours"])
    record["attend_backward_tflops"] = case.teraflops(record["backward_ms"]["attend ours"], True)
    if peer is not None:
        del result
        record["extra_mib"]["layer training peer"] = extra_mib(
            lambda: torch.autograd.grad(peer.layer(*inputs), inputs, case.dout), 4 * tensor_bytes
        )
    return record


def table(records: list[dict]) -> None:
    """Ours and the peer's medians, and their ratio."""
    print(f"{'problem':14} {'what':10} {'ours ms':>9} {'peer ms':>9} {'peer/ours':>9}")
    for record in records:
        for what in ("forward", "backward", "layer_forward", "layer_backward"):
            times = record[f"{what}_ms"]
            ours = next(time for name, time in times.items() if name.endswith("ours"))
            peer = next((time for name, time in times.items() if name.endswith("peer")), None)
            ratio = f"{peer:9.3f} {peer / ours:9.2f}" if peer else ""
            print(f"{record['problem']:14} {what:14} {ours:9.3f} {ratio}")
        print(f"{record['problem']:14} attend {record['attend_tflops']:.0f} TFLOP/s, backward "
              f"{record['attend_backward_tflops']:.0f}; extra MiB "
              f"{ {k: round(v) for k, v in record['extra_mib'].items()} }")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="33k,wan14b-720p,123k")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rep", type=int, default=60, help="milliseconds a round and contestant")
    parser.add_argument("--dense", action="store_true", help="torch's dense attention too")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    if peer_package is None:
        print("without the peer:", why_no_peer)
    records = []
    for name in options.problems.split(","):
        records.append(measure(name, options))
        torch.cuda.empty_cache()
        if options.json:
            header = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                      "triton": triton.__version__, "rounds": options.rounds,
                      "peer": getattr(peer_package, "__version__", None),
                      "date": datetime.datetime.now(datetime.timezone.utc).isoformat()}  # fmt: skip
            options.json.write_text(json.dumps({**header, "problems": records}, indent=1) + "\n")
    table(records)


if __name__ == "__main__":
    main()
