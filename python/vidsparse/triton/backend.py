"""The row of the backend list: what runs on Triton, and why not the rest."""

from __future__ import annotations

import importlib.util

import torch

from ..backends import Backend, Kernels, Problem, Verdict

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class TritonBackend(Backend):
    """Kernels compiled at first use for the GPU at hand."""

    name = "triton"
    summary = "Triton kernels for NVIDIA and AMD GPUs, compiled at first use"

    def can_run(self, problem: Problem | None, device: torch.device) -> Verdict:
        if importlib.util.find_spec("triton") is None:
            return Verdict(False, "the package triton is not installed")
        from triton import knobs

        if device.type == "cpu":
            if not knobs.runtime.interpret:
                return Verdict(False, "a CPU runs Triton kernels only with TRITON_INTERPRET=1")
        elif device.type != "cuda":
            return Verdict(False, f"device: expected a GPU of type cuda, got {device.type}")
        elif not torch.cuda.is_available():
            return Verdict(False, "device: no GPU is visible to torch")
        elif torch.version.hip is None:
            capability = torch.cuda.get_device_capability(device)
            if capability < (8, 0):
                got = ".".join(map(str, capability))
                return Verdict(False, f"device: expected compute capability 8.0 or more, got {got}")
        if problem is not None:
            if device.type == "cpu" and problem.dtype == torch.bfloat16:
                return Verdict(False, "dtype: Triton's interpreter does not multiply bfloat16")
            if problem.head_dim not in HEAD_DIMS:
                return Verdict(False, f"head_dim: expected 64 or 128, got {problem.head_dim}")
            if problem.dtype not in DTYPES:
                return Verdict(
                    False, f"dtype: expected bfloat16, float16 or float32, got {problem.dtype}"
                )
            for name, layout in (("q", problem.query_layout), ("k", problem.key_layout)):
                if layout.tiles * layout.slots >= 2**31:
                    return Verdict(False, f"{name}: expected fewer than 2^31 slots in its tiles")
            if problem.batch > 65535 or problem.heads_q > 65535:
                return Verdict(False, "batch and heads: expected at most 65535")
        how = "interpreted" if device.type == "cpu" else "compiled at first use"
        return Verdict(True, how)

    def prepare(self, problem: Problem, device: torch.device) -> Kernels:
        from .kernels import TritonKernels

        return TritonKernels(problem, device)
