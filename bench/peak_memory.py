"""Extra memory of a forward, as the peak resident set of a process that does nothing else.

Run as a child of bench_cpu.py: prints one JSON line. Needs Linux (/proc) and numpy.
"""

import argparse
import json
import time

import numpy

from c_interface import ForwardArgs, Gate, Library, Selection, Tensor


def status_bytes(field):
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True)
    parser.add_argument("--threads-library", required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", default="")
    options = parser.parse_args()

    grid = [int(side) for side in options.grid.split("x")]
    tokens, heads, dim = grid[0] * grid[1] * grid[2], options.heads, 128
    plan = Library(options.library, options.threads_library).plan(
        grid, heads, dim, "bf16", options.threads, options.backend)
    random = numpy.random.default_rng()
    buffers = {}
    for name in ("q", "k", "v", "gate", "out"):
        buffer = numpy.empty(tokens * heads * dim, numpy.uint16)
        # In pieces: a whole fp32 copy would raise the peak before the measurement starts.
        for start in range(0, buffer.size, 1 << 22):
            piece = random.standard_normal(min(1 << 22, buffer.size - start), numpy.float32)
            buffer[start:start + piece.size] = piece.view(numpy.uint32) >> 16
        buffers[name] = buffer

    def tensor(name):
        return Tensor.dense(buffers[name].ctypes.data, "bf16", 1, tokens, heads, dim)

    selection = Selection(rule=1, sparsity=options.sparsity)
    args = ForwardArgs(q=tensor("q"), k=tensor("k"), v=tensor("v"), out=tensor("out"),
                       gate=Gate(2, 0, tensor("gate")))
    args.selection.contents = selection
    # From here on: the peak starts anew at what is resident now, inputs and outputs included.
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")
    before = status_bytes("VmRSS")
    size = plan.workspace_bytes("forward", args)
    workspace = numpy.empty(size + 64, numpy.uint8)
    start = time.perf_counter()
    plan.run("forward", args, (workspace.ctypes.data + 63) // 64 * 64, size)
    seconds = time.perf_counter() - start
    extra = status_bytes("VmHWM") - before
    print(json.dumps({"workspace_bytes": size, "extra_bytes": extra, "seconds": seconds,
                      "qkv_bytes": 3 * buffers["q"].nbytes, "tokens": tokens,
                      "share_of_qkv": extra / (3 * buffers["q"].nbytes), "isa": plan.detail}))


if __name__ == "__main__":
    main()
