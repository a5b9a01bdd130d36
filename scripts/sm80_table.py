#!/usr/bin/env python3
"""Compiles the kernels of src/cuda/sm80 without a GPU: registers, spills, shared memory, occupancy.

    scripts/sm80_table.py [--nvcc NVCC]

Prints a table in Markdown; exits with 1 where a kernel spills on sm_89 or sm_120.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {  # the architectures whose devices take a file's shapes
    "attend_large": ("80", "90"),
    "gradient_large": ("80", "90"),
    "attend_small": ("86", "89", "120"),
    "gradient_small": ("86", "89", "120"),
}
NO_SPILLS = ("89", "120")
KB = 1024
SHARED = {"80": 164 * KB, "86": 100 * KB, "89": 100 * KB, "90": 228 * KB, "120": 100 * KB}
RESERVED = 1 * KB  # of shared memory, by the system, a block
REGISTERS = 65536  # of a multiprocessor
FRAGMENT = 64  # rows
LIST = 32 * 16  # bytes of a block's list of fragments


class Kernel(NamedTuple):
    """What the configurations in attend_config.hpp and gradient_config.hpp come to."""

    name: str
    threads: int
    shared: int  # bytes of a block


def attend(dim: int, row_tiles: int, key_slots: int) -> Kernel:
    fragments = key_slots + (2 if row_tiles == 2 else 1)  # with two row tiles the queries' own
    return Kernel(f"attend {dim}", 128 // row_tiles, fragments * FRAGMENT * dim * 2 + LIST)


def gradient(dim: int, by_key: int, column_warps: int, stages: int) -> Kernel:
    pair = 2 * FRAGMENT * dim * 2
    norms = 2 * FRAGMENT * 4 if by_key else 0
    exchange = 2 * FRAGMENT * FRAGMENT * 2 if by_key and column_warps == 2 else 0
    side = "key" if by_key else "query"
    shared = pair + stages * (pair + norms) + exchange + LIST
    return Kernel(f"gradient by {side} {dim}", 128, shared)


def kernel_of(symbol: str) -> Kernel:
    """From a mangled name, Li128E for 128 and Lb1E for true."""
    numbers = [int(n) for n in re.findall(r"L[ib](\d+)E", symbol)]
    return attend(*numbers[:3]) if "AttendConfig" in symbol else gradient(*numbers[:4])


def compile_kernels(nvcc: str, file: str) -> str:
    """What ptxas says of a file's kernels for all its architectures."""
    source = ROOT / "src/cuda/sm80" / f"{file}.cu"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in FILES[file]]
    includes = [f"-I{ROOT / 'src'}", f"-I{ROOT / 'include'}"]
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    command = [nvcc, *flags, *includes, *targets, "-c", str(source), "-o", "/dev/null"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def rows(report: str) -> list[tuple[str, Kernel, int, int]]:
    """(architecture, kernel, registers, spilled bytes) of the bf16 instances."""
    found = re.findall(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return [
        (arch, kernel_of(symbol), int(registers), int(stores) + int(loads))
        for symbol, arch, stores, loads, registers in found
        if "nv_bfloat16" in symbol
    ]


def blocks_of(kernel: Kernel, arch: str, registers: int) -> int:
    """Blocks of a multiprocessor; registers are given out by 8 a thread."""
    by_registers = REGISTERS // (kernel.threads * ((registers + 7) // 8 * 8))
    return min(by_registers, SHARED[arch] // (kernel.shared + RESERVED))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    nvcc = parser.parse_args().nvcc
    print("| kernel | architecture | registers | spilled bytes | KB | threads | blocks | warps |")
    print("|---|---|---|---|---|---|---|---|")
    spilled = False
    for file in FILES:
        for arch, kernel, registers, spill in sorted(
            rows(compile_kernels(nvcc, file)), key=lambda row: (row[1].name, int(row[0]))
        ):
            blocks = blocks_of(kernel, arch, registers)
            spilled |= spill > 0 and arch in NO_SPILLS
            print(
                f"| {kernel.name} | sm_{arch} | {registers} | {spill} | {kernel.shared / KB:.1f} "
                f"| {kernel.threads} | {blocks} | {blocks * kernel.threads // 32} |"
            )
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
