"""Every Triton kernel compiles for every target without a GPU; on sm_89 and sm_120 none spills."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")
TABLE = pathlib.Path(__file__).parents[2] / "scripts" / "triton_table.py"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--targets", "sm_80,sm_90,gfx942,gfx1100"],
        ["--targets", "sm_89,sm_120", "--dtypes", "bf16,fp32", "--dims", "64,128"],
    ],
    ids=["every target", "Ada and Blackwell"],
)
def test_compiles(arguments):
    run = subprocess.run([sys.executable, TABLE, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line for line in run.stdout.splitlines() if line.startswith(("| sm_", "| gfx"))]
    assert len(rows) >= 8 * len(arguments[1].split(","))


def test_numbers_compile_nothing():
    """Neither top_k nor batch, heads, grid or text; another power of two of tiles one kernel."""
    program = pathlib.Path(__file__).with_name("triton_variants.py")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0"] * 7 + ["1"]
