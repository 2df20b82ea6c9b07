"""The graphs benchmark, run at sizes that are too small for its figures to mean anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {
    "compared": ["8"], "embedded": ["6", "8"], "budgeted": ["6", "8"], "whole": ["4", "6"], "repeats": ["1"],
    "budget": ["40"], "threads": ["1"], "memory-gb": ["0.00001"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the commit before is read from the git repository")
def test_the_last_line_holds_the_figures_and_the_graphs_are_the_same(tmp_path: Path) -> None:
    sizes = [word for name, values in SIZES.items() for word in (f"--{name}", *values)]
    figure = tmp_path / "graphs.png"
    command = [sys.executable, str(ROOT / "benchmarks" / "graphs.py"), "--before", "HEAD", "--tiny", *sizes]
    run = subprocess.run([*command, "--figure", str(figure)], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert {"seconds_8", "speedup_8", "speedup_whole", "memory_ratio"} <= set(result)
    assert "the same nodes and edges: True; weights differ by 0.0e+00" in run.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
