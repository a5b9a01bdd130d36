#!/usr/bin/env python3
"""The whole layer on a GPU, forward and backward: our backends beside their peers.

    bench/bench_layer.py [--problems 33k,wan14b-720p,123k] [--backends sm90,triton] [--flex]
                         [--json FILE]

Raster in to raster out, with a gate. Peers: torch's dense attention on the real tokens (cuDNN,
forward) and PyPI's fastvideo-kernel with its host's tiling.

All take turns in one process; figures are medians of GPU time in ms, the second-level cache
overwritten before each run. `attend` is the fine stage on the selection that our layer makes,
`attend backward` its gradients; --flex adds compiled FlexAttention, which takes blocks of 128
tokens, on a random selection of as much work.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import pathlib

import torch
from torch._functorch import config as functorch_config
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

import vidsparse  # before the others: they would take the sources' package, which lacks the library

# isort: split
import bench_triton
from triton_case import Case, Stopwatch


def dense(case: Case):
    """torch's attention on the same tokens, [B, H, S, D] views."""
    heads_first = [x.transpose(1, 2) for x in (case.q, case.k, case.v)]

    def call():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(*heads_first)

    return call


def gradients(call, inputs: tuple[torch.Tensor, ...], dout: torch.Tensor):
    """The backward of `call(*inputs)` through autograd, its forward done."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = call(*leaves)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def flex_blocks(case: Case):
    """FlexAttention's forward and backward on tokens already in its blocks' order, padded as our
    tiles are."""
    rows = case.tiles // 2
    kept = round(case.pairs / (case.heads * case.tiles) / 2)
    shape = (1, case.heads, rows * 128, case.q.shape[-1])
    q, k, v, dout = (torch.randn(shape, device=case.q.device, dtype=case.q.dtype) for _ in range(4))
    order = torch.rand(1, case.heads, rows, rows, device=q.device).argsort(-1).to(torch.int32)
    counts = torch.full_like(order[..., 0], kept)
    mask = flex_attention.BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(order), counts, order, BLOCK_SIZE=128
    )
    functorch_config.donated_buffer = False  # a graph that is walked many times keeps its memory
    torch._dynamo.reset()
    run = torch.compile(flex_attention.flex_attention, dynamic=False)
    inputs = tuple(x.requires_grad_() for x in (q, k, v))

    def forward(q=q, k=k, v=v):  # as in training, so that one compilation serves both
        with torch.enable_grad():
            return run(q, k, v, block_mask=mask)

    return forward, gradients(forward, inputs, dout)


def measure(name: str, options: argparse.Namespace) -> dict:
    case = Case(name, options.sparsity)
    backends = options.backends.split(",")
    arguments = dict(grid=case.grid, sparsity=options.sparsity, gate=case.gate)
    calls, attend, attend_backward = {}, {}, {}
    contestants, extra, training = {}, {}, {}
    tokens = (case.q, case.k, case.v)
    kept = case.q.numel() * case.q.element_size()
    for backend in backends:

        def layer(backend=backend):
            return vidsparse.video_sparse_attention(
                case.q, case.k, case.v, backend=backend, **arguments
            )

        def fine(q=case.q, k=case.k, v=case.v, backend=backend):
            return vidsparse.block_sparse_attention(
                q, k, v, case.mask, grid=case.grid, backend=backend
            )

        calls[f"layer {backend}"], attend[f"attend {backend}"] = layer, fine
        contestants[backend] = lambda q, k, v, gate, backend=backend: (
            vidsparse.video_sparse_attention(
                q, k, v, grid=case.grid, sparsity=options.sparsity, gate=gate, backend=backend
            )
        )
        attend_backward[f"attend backward {backend}"] = gradients(fine, tokens, case.dout)
        extra[backend] = bench_triton.extra_mib(layer, kept)
    if bench_triton.peer_package is not None:
        peer = bench_triton.Peer(case)
        calls["layer fastvideo-kernel"] = lambda: peer.layer(case.q, case.k, case.v, case.gate)
        attend["attend fastvideo-kernel"] = peer.attend
        attend_backward["attend backward fastvideo-kernel"] = peer.attend_backward
        contestants["fastvideo-kernel"] = peer.layer
        extra["fastvideo-kernel"] = bench_triton.extra_mib(calls["layer fastvideo-kernel"], kept)
    for contestant, layer in contestants.items():
        backward = gradients(layer, (*tokens, case.gate), case.dout)
        calls[f"layer backward {contestant}"] = backward
        training[contestant] = bench_triton.extra_mib(
            lambda layer=layer: gradients(layer, (*tokens, case.gate), case.dout)(), 5 * kept
        )
    calls["dense cudnn"] = dense(case)
    if options.flex:
        attend["attend flex"], attend_backward["attend backward flex"] = flex_blocks(case)
    all_calls = {**calls, **attend, **attend_backward}
    times = Stopwatch(case.q.device).in_turns(all_calls, options.rounds)
    return {"problem": name, "tokens": case.tokens, "heads": case.heads, "tiles": case.tiles,
            "pairs": case.pairs, "sparsity": options.sparsity, "ms": times, "extra_mib": extra,
            "training_extra_mib": training,
            "attend_tflops": {n: case.teraflops(times[n]) for n in attend},
            "attend_backward_tflops": {n: case.teraflops(times[n], backward=True)
                                       for n in attend_backward}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="33k,wan14b-720p,123k")
    parser.add_argument("--backends", default="sm90,triton")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--flex", action="store_true", help="compiling takes half a minute")
    parser.add_argument("--rounds", type=int, default=8, help="of 15 ms and more a contestant")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    records = []
    with torch.no_grad():
        for name in options.problems.split(","):
            record = measure(name, options)
            records.append(record)
            torch.cuda.empty_cache()
            print(name, {n: round(ms, 3) for n, ms in record["ms"].items()})
            rates = {**record["attend_tflops"], **record["attend_backward_tflops"]}
            print(name, "TFLOP/s", {n: round(t) for n, t in rates.items()},
                  "extra MiB", {n: round(m) for n, m in record["extra_mib"].items()},
                  "in training", {n: round(m) for n, m in record["training_extra_mib"].items()},
                  flush=True)  # fmt: skip
            if options.json:
                header = {
                    "device": torch.cuda.get_device_name(),
                    "torch": torch.__version__,
                    "vidsparse": importlib.metadata.version("vidsparse"),
                    "rounds": options.rounds,
                    "fastvideo_kernel": getattr(bench_triton.peer_package, "__version__", None),
                    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
                }
                text = json.dumps({**header, "problems": records}, indent=1)
                options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
