"""The whole op in Triton: any GPU that Triton serves, without the compiled library.

The backend is named "triton" and is chosen, forced and refused like every other (`backends.py`).
With TRITON_INTERPRET=1 it runs on the CPU, slowly, which is how it is tested without a GPU.
"""

from __future__ import annotations

from .backend import TritonBackend


def backend() -> TritonBackend:
    """The row of the backend list."""
    return TritonBackend()
