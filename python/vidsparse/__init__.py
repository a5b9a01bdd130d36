"""Video Sparse Attention for PyTorch.

    out = vidsparse.video_sparse_attention(q, k, v, grid=(21, 30, 52), sparsity=0.9, gate=gate)
"""

from . import compat, masks
from .errors import ArgumentError, UnsupportedError
from .functional import (
    block_sparse_attention,
    pool,
    select,
    video_sparse_attention,
    video_sparse_attention_qkvpacked,
)
from .info import explain, info, plan
from .layout import TileLayout, top_k_of
from .module import VideoSparseAttention
from .sequence import Packed, Plain, Sequence, Video

__all__ = [
    "ArgumentError",
    "Packed",
    "Plain",
    "Sequence",
    "TileLayout",
    "UnsupportedError",
    "Video",
    "VideoSparseAttention",
    "block_sparse_attention",
    "compat",
    "explain",
    "info",
    "masks",
    "plan",
    "pool",
    "select",
    "top_k_of",
    "video_sparse_attention",
    "video_sparse_attention_qkvpacked",
]
