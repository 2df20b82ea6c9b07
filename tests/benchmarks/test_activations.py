"""The benchmark of activations at a tiny size: the last line holds the rates, with and without h5py."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import activations

SIZES = {"layers": 2, "d-model": 8, "tokens": 60, "shard-tokens": 25, "batch-tokens": 10, "harvest-tokens": 100}


@pytest.mark.parametrize("has_h5py", [True, False])
def test_the_last_line_holds_the_rates(
    has_h5py: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if has_h5py:
        pytest.importorskip("h5py")
    else:
        monkeypatch.setitem(sys.modules, "h5py", None)
    options = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    monkeypatch.setattr("sys.argv", ["activations.py", "--repeats", "1", "--keep-cores", *options])
    activations.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = ["read_mb_per_second", "ratio_to_copy", "harvest_tokens_per_second"]
    assert all(result[name] > 0 for name in rates + ["speedup_h5py"] * has_h5py)
    assert has_h5py or result["speedup_h5py"] is None
