"""Video Sparse Attention for PyTorch."""

from .errors import ArgumentError, UnsupportedError
from .layout import TileLayout, top_k_of
from .sequence import Packed, Plain, Sequence, Video

__all__ = [
    "ArgumentError",
    "Packed",
    "Plain",
    "Sequence",
    "TileLayout",
    "UnsupportedError",
    "Video",
    "top_k_of",
]
