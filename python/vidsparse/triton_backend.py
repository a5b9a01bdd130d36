"""The Triton backend's row of the list, where Triton is installed."""

from __future__ import annotations

import importlib.util

from .backends import Backend


def backends() -> list[Backend]:
    """The backend named "triton"; nothing where the packages it needs are missing."""
    if importlib.util.find_spec("triton") is None:
        return []
    if importlib.util.find_spec("vidsparse.triton") is None:
        return []
    from .triton import backend

    return [backend()]
