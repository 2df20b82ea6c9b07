"""The attribution benchmark, run at sizes that are too small for its figures to mean anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attribution.py"
SIZES = {
    "layers": 2, "d-model": 32, "heads": 4, "vocabulary": 200, "features": 64, "active": 4, "tokens": 8, "budget": 16,
    "check-tokens": 4, "long-tokens": 12, "long-budget": 24, "twin-rows": 4, "repeats": 1, "threads": 1,
}  # fmt: skip


@pytest.mark.slow
def test_the_last_line_holds_the_figures_and_the_slow_twin_agrees() -> None:
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    run = subprocess.run([sys.executable, str(SCRIPT), *sizes], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert {"seconds", "extra_memory_mb", "floor_ratio", "long_seconds", "long_extra_memory_mb"} <= set(result)
    assert result["seconds"] > 0
    assert result["floor_ratio"] > 1
    assert result["twin_max_abs_diff"] < 1e-5
