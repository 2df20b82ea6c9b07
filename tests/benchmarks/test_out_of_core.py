"""The out-of-core benchmark at a tiny size: graphs from files are those from memory, and holes hold no features."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from benchmarks import out_of_core
from benchmarks.out_of_core import Shape

TINY = Shape(layers=2, d_model=32, features=256, weighted=32, active=3, tokens=5)


def test_a_sparse_transcoder_has_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_core, "LARGE", TINY)
    result = out_of_core.large(tmp_path, 1)
    assert result["active"] == TINY.layers * (TINY.tokens - 1) * TINY.active
    assert result["gb_in_files"] * 1e9 > 2 * TINY.features * TINY.d_model * (2 + 2 + 1)


def test_graphs_from_files_are_those_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_core, "FITS", TINY)
    result = out_of_core.fits(tmp_path, 1)
    assert result["identical"]
    assert result["largest_difference"] < 1e-6
