#!/usr/bin/env python3
"""Compiles every Triton kernel for every target, without a GPU: registers, spills, shared memory.

    scripts/triton_table.py [--targets sm_89,sm_120] [--dtypes bf16,fp32] [--dims 128] [--json FILE]

Exits with 1 where a kernel does not compile, spills on sm_89 or sm_120, or asks for more shared
memory than a block of the target has.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

from vidsparse.triton.attend import attend_kernel
from vidsparse.triton.coarse import coarse_backward_kernel
from vidsparse.triton.config import Config, Shape, config_for
from vidsparse.triton.gradients import key_gradients_kernel, query_gradients_kernel
from vidsparse.triton.kernels import PLAIN_WARPS, POOL_WARPS, search_shape
from vidsparse.triton.lists import lists_kernel
from vidsparse.triton.pool import pool_kernel
from vidsparse.triton.prepare import prepare_kernel
from vidsparse.triton.select import select_kernel
from vidsparse.triton.tiles import PIECE

SHARED = 1024
TARGETS = {  # name -> target, bytes of shared memory a block may have
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * SHARED),
    "sm_89": (GPUTarget("cuda", 89, 32), 99 * SHARED),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * SHARED),
    "sm_120": (GPUTarget("cuda", 120, 32), 99 * SHARED),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * SHARED),
    "gfx1100": (GPUTarget("hip", "gfx1100", 32), 64 * SHARED),
}
NO_SPILLS = ("sm_89", "sm_120")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

FLOATS = {"qc", "kc", "vc", "oc", "d_oc", "dqc", "dkc", "dvc", "lse", "dlse", "delta", "norms",
          "coarse_max", "coarse_sum", "scratch"}  # fmt: skip
INTS = {"mask", "always", "q_tokens", "k_tokens", "q_facts", "k_facts", "facts", "q_lengths",
        "k_lengths", "lengths", "counts"}  # fmt: skip
MODEL = {"q", "k", "v", "gate", "dgate", "out", "dout", "dq", "dk", "dv"}
SCALARS = {"scale": "fp32", "gate_value": "fp32"}
TILES = 2048  # the bucket of tile counts that select is compiled for


def kernels(config: Config, dim: int):
    """Name, function, launch shape and constants of each kernel, in its fullest variant."""
    lengths = {"Q_LENGTHS": True, "K_LENGTHS": True}

    def walk(shape, *sides):
        return {**dict.fromkeys(sides or lengths, True), "E": 64, "D": dim, "PRECISION": "ieee",
                "ROWS": shape.rows, "COLUMNS": shape.columns}  # fmt: skip

    pooled = {"D": dim, "PRECISION": config.coarse_precision}
    rows, chunk = search_shape(TILES, config.select)
    plain = Shape(PLAIN_WARPS, 3)
    return [
        ("pool", pool_kernel, Shape(POOL_WARPS, 3),
         {**lengths, "HAS_Q": True, "HAS_K": True, "HAS_V": True, "E": 64, "D": dim}),
        ("select", select_kernel, config.select,
         {**pooled, "HAS_COARSE": True, "HAS_ALWAYS": True, "K_LENGTHS": True,
          "BM": config.select.rows, "BN": config.select.columns,
          "ROWS": rows, "CHUNK": chunk, "WHOLE": True}),
        ("lists", lists_kernel, plain,
         {"BY_KEY": True, "LENGTHS": True, "E": 64, "PIECE": PIECE, "LINES": 32, "CHUNK": 128}),
        ("attend", attend_kernel, config.attend,
         {**walk(config.attend), "NEGATIVE": False, "PIECE": PIECE, "GATE": 2, "HAS_LSE": True}),
        ("prepare", prepare_kernel, plain,
         {"GATE": 2, "HAS_DGATE": True, "HAS_DLSE": True, "Q_LENGTHS": True, "E": 64, "D": dim}),
        ("coarse_backward", coarse_backward_kernel, config.coarse,
         {**pooled, **lengths, "BLOCK": config.coarse.rows}),
        ("key_gradients", key_gradients_kernel, config.key_gradients,
         {**walk(config.key_gradients, "K_LENGTHS"), "group": 1, "PIECE": PIECE,
          "HAS_COARSE": True}),
        ("query_gradients", query_gradients_kernel, config.query_gradients,
         {**walk(config.query_gradients), "PIECE": PIECE, "HAS_COARSE": True}),
    ]  # fmt: skip


def source_of(function, constants: dict, dtype: str) -> ASTSource:
    """The kernel as a launch on aligned tensors specialises it."""
    signature, attributes, values = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(place,)] = constants[name]
            continue
        aligned = True
        if name in MODEL:
            signature[name] = f"*{dtype}"
        elif name in FLOATS:
            signature[name] = "*fp32"
        elif name in INTS:
            signature[name] = "*i32"
        elif name == "items":
            signature[name] = "*u16"
        elif name == "sound":
            signature[name] = "*i8"
        else:
            signature[name] = SCALARS.get(name, "i32")
            aligned = name == "pitch" or ("stride" in name and "length" not in name)
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, values, attributes)


def usage(compiled) -> tuple[int, int]:
    """Registers of a thread, and bytes of it that spill to memory."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text).group(1))
        scratch = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text).group(1))
        return registers, scratch
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", binary.name], check=True, capture_output=True, text=True
        ).stdout
    registers = int(re.search(r"REG:(\d+)", text).group(1))
    return registers, int(re.search(r"STACK:(\d+)", text).group(1))


def measure(target_name: str, dtype: str, dim: int) -> list[dict]:
    """One row a kernel."""
    target, limit = TARGETS[target_name]
    config = config_for(target.backend, target.arch, DTYPES[dtype])
    rows = []
    for name, function, shape, constants in kernels(config, dim):
        row = {"kernel": name, "target": target_name, "dtype": dtype, "head_dim": dim,
               "warps": shape.warps, "stages": shape.stages}  # fmt: skip
        try:
            compiled = triton.compile(
                source_of(function, constants, dtype),
                target=target,
                options=shape.options,
            )
            row["registers"], row["spilled"] = usage(compiled)
            row["shared"] = compiled.metadata.shared
            row["ok"] = row["shared"] <= limit and not (row["spilled"] and target_name in NO_SPILLS)
        except Exception as failure:  # a compiler's failure is a row of the table, whatever it is
            row.update(ok=False, failure=str(failure).strip().splitlines()[-1][:200])
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--dtypes", default="bf16")
    parser.add_argument("--dims", default="128")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    rows = []
    for target in options.targets.split(","):
        for dtype in options.dtypes.split(","):
            for dim in options.dims.split(","):
                rows += measure(target, dtype, int(dim))
    print("| target | dtype | D | kernel | warps | stages | registers | spilled B | shared B |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        figures = (
            f"{row['registers']} | {row['spilled']} | {row['shared']}"
            if "registers" in row
            else row["failure"]
        )
        print(
            f"| {row['target']} | {row['dtype']} | {row['head_dim']} | {row['kernel']} | "
            f"{row['warps']} | {row['stages']} | {figures} |{'' if row['ok'] else ' NOT OK'}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
