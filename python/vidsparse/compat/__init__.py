"""Drop-ins for the packages that hosts of Video Sparse Attention import.

    import vidsparse.compat
    vidsparse.compat.install()      # before the host imports its kernels

From then on `import fastvideo_kernel` and `import vsa` find this library.
"""

from __future__ import annotations

import sys
from types import ModuleType

from . import fastvideo_kernel, triton_kernels, vsa
from .triton_kernels import index

_MODULES: dict[str, ModuleType] = {
    "fastvideo_kernel": fastvideo_kernel,
    "fastvideo_kernel.triton_kernels": triton_kernels,
    "fastvideo_kernel.triton_kernels.index": index,
    "vsa": vsa,
}
_replaced: dict[str, ModuleType | None] = {}


def install() -> None:
    """Makes `fastvideo_kernel` and `vsa` mean this library for every import from now on. Names of
    the real fastvideo_kernel that are not Video Sparse Attention still come from it, where it is
    installed."""
    for name, module in _MODULES.items():
        if sys.modules.get(name) is not module:
            _replaced[name] = sys.modules.get(name)
            sys.modules[name] = module
    fastvideo_kernel.find_original()


def uninstall() -> None:
    """Undoes `install` for imports from now on."""
    for name, module in _replaced.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module
    _replaced.clear()


__all__ = ["fastvideo_kernel", "install", "uninstall", "vsa"]
