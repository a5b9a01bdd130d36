"""The backends of the compiled library, where it is installed."""

from __future__ import annotations

from .backends import Backend


def backends() -> list[Backend]:
    """In the library's order of preference; nothing in a pure-Python installation."""
    return []
