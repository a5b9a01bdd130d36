"""What is installed, which backend runs what, and why not the others."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from . import native
from .backends import Problem, Verdict, backend_list, choose
from .errors import refuse
from .functional import tokens_of
from .layout import TileLayout, resolve_top_k
from .sequence import Ints, Sequence, check_integer, parse_tile


@dataclass(frozen=True)
class Info:
    """`str()` of it is a report; `python -m vidsparse` prints that."""

    version: str
    torch: str
    library: str | None  # the compiled library's file; None in a pure-Python installation
    platform: str | None  # the oldest the library runs on: "manylinux_2_34"
    driver: str | None  # the oldest CUDA driver its GPU kernels run on; None without them
    backends: dict[str, dict[str, Verdict]]  # device -> backend -> verdict, in order of preference
    cpu_isas: dict[str, Verdict] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"vidsparse {self.version}, torch {self.torch}",
            f"library   {self.library or 'none: pure-Python installation'}",
            f"needs     {self.platform or '-'}; CUDA driver: {self.driver or 'no CUDA kernels'}",
        ]
        for device, verdicts in self.backends.items():
            lines.append(f"{device}:")
            lines += (_line(name, verdict) for name, verdict in verdicts.items())
        if self.cpu_isas:
            lines.append("instruction sets of the cpu backend:")
            lines += (_line(name, verdict) for name, verdict in self.cpu_isas.items())
        return "\n".join(lines)


def _line(name: str, verdict: Verdict) -> str:
    return f"  {name:12} {'yes' if verdict.ok else 'no '}  {verdict.reason}"


def info() -> Info:
    """The installation, and every backend's verdict on every device of this machine."""
    path = native.library()
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    rows = backend_list()
    verdicts = {
        name: {row.name: row.can_run(None, torch.device(name)) for row in rows} for name in devices
    }
    isas = {}
    driver = None
    if path is not None:
        listed = native.rows_of(torch.ops.vidsparse_native.list_cpu_isas())
        isas = {name: verdict for name, verdict, _, _ in listed}
        driver = torch.ops.vidsparse_native.driver_floor() or None
    try:
        installed = version("vidsparse")
    except PackageNotFoundError:
        installed = "not installed"
    return Info(
        installed,
        torch.__version__,
        None if path is None else str(path),
        None if path is None else _platform_floor(path),
        driver,
        verdicts,
        isas,
    )


def _platform_floor(path) -> str | None:
    """manylinux level by the newest glibc symbol the library asks for; None elsewhere."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.findall(rb"\x00GLIBC_(\d+)\.(\d+)", data)
    newest = max((tuple(map(int, pair)) for pair in found), default=None)
    return None if newest is None else f"manylinux_{newest[0]}_{newest[1]}"


@dataclass(frozen=True)
class PlanInfo:
    """What a call of this problem would do."""

    problem: Problem
    query: TileLayout
    key: TileLayout
    backend: str
    detail: str  # what the backend chose, e.g. the instruction set
    top_k: int | None  # of the video key tiles, if sparsity or top_k was given
    padding_waste: float  # slots of the query's tiles per token, less one

    def __str__(self) -> str:
        kept = "" if self.top_k is None else f", top {self.top_k} of {self.key.video_tiles}"
        return (
            f"{self.problem.query}: {self.query.tokens} tokens, {self.query.tiles} tiles "
            f"({self.padding_waste:.1%} of padding, which is never stored){kept}; "
            f"backend {self.backend} ({self.detail})"
        )


def _problem(
    grid: Ints | None,
    query: Sequence | None,
    key: Sequence | None,
    prefix: Ints,
    tile: int | Ints,
    batch: int,
    heads: int,
    heads_kv: int | None,
    head_dim: int,
    dtype: torch.dtype,
) -> Problem:
    shape, _, _ = tokens_of(grid, query, key, tile, prefix, None, "raster", None, None)
    sequences = Sequence.decode(shape.query), Sequence.decode(shape.key)
    heads_kv = heads if heads_kv is None else heads_kv
    sizes = dict(batch=batch, heads=heads, heads_kv=heads_kv, head_dim=head_dim)
    for name, size in sizes.items():
        check_integer(name, size, least=0 if name == "batch" else 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        refuse("dtype", "a floating dtype of torch", dtype)
    if heads % heads_kv != 0:
        refuse("heads_kv", f"a number that divides the {heads} heads", heads_kv)
    sides = parse_tile(shape.tile)
    return Problem(*sequences, sides, batch, heads, heads_kv, head_dim, dtype)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        refuse("device", "a device of torch", repr(device))


def plan(
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    prefix: Ints = (),
    tile: int | Ints = (4, 4, 4),
    batch: int = 1,
    heads: int = 1,
    heads_kv: int | None = None,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    sparsity: float | None = None,
    top_k: int | None = None,
    backend: str | None = None,
) -> PlanInfo:
    """Validates a problem and says how it would be tiled and who would run it. Raises what the call
    would: ArgumentError, or UnsupportedError with every backend's reason."""
    problem = _problem(
        grid, query, key, prefix, tile, batch, heads, heads_kv, head_dim, dtype
    )
    where = _device(device)
    layout = problem.key_layout
    kept = None
    if sparsity is not None or top_k is not None:
        kept = resolve_top_k(sparsity, top_k, layout.video_tiles)
    chosen = choose(problem, where, backend)
    detail = chosen.can_run(problem, where).reason
    query_layout = problem.query_layout
    waste = query_layout.padding_waste()
    return PlanInfo(problem, query_layout, layout, chosen.name, detail, kept, waste)


def explain(
    *,
    grid: Ints | None = None,
    query: Sequence | None = None,
    key: Sequence | None = None,
    prefix: Ints = (),
    tile: int | Ints = (4, 4, 4),
    batch: int = 1,
    heads: int = 1,
    heads_kv: int | None = None,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> dict[str, Verdict]:
    """Every backend's verdict on a problem, in order of preference."""
    problem = _problem(
        grid, query, key, prefix, tile, batch, heads, heads_kv, head_dim, dtype
    )
    where = _device(device)
    return {row.name: row.can_run(problem, where) for row in backend_list()}
