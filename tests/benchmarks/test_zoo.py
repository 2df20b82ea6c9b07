"""The zoo trains, measures and writes the pairs that its command line names; here it learns for three steps only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import open_clt.embedded
from open_clt.transcoders.formats.load import load_transcoder

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
RECIPES = ["TopK", "JumpReLU, tanh"]


@pytest.mark.slow
def test_each_pair_has_a_row_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    pairs = ["--architectures", "per-layer", "--nonlinearities", *RECIPES]
    sizes = ["--steps", "3", "--features", "64", "--jobs", "1"]
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path), *pairs, *sizes]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads((tmp_path / "zoo.json").read_text())
    assert (content["steps"], content["features"]) == (3, 64)
    rows = content["rows"]
    assert [(row["architecture"], row["nonlinearity"]) for row in rows] == [("per-layer", name) for name in RECIPES]
    shipped = load_transcoder(Path(open_clt.embedded.__file__).parent / "transcoder").config
    layers, d_model = shipped.n_layers, shipped.d_model
    with_topk = layers * (2 * 64 * d_model + 64 + d_model)  # each feature writes to its own layer only
    assert [row["parameters"] for row in rows] == [with_topk, with_topk + layers * 64], "JumpReLU learns thresholds"
    for row in rows:
        assert row["l0"] == pytest.approx(64 * 0.02, rel=0.5), "three steps hardly change the first firing rate"
        assert 0 < row["fvu"] <= row["worst_fvu"]
        assert 0 <= row["dead_share"] < 1
        assert row["ce_replacement"] > row["ce_original"] > 0
        assert 0 < row["top1_agreement"] < 1

    table = (tmp_path / "zoo.md").read_text()
    assert table in run.stdout
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:]] == [["| per-layer", name] for name in RECIPES]
    assert (tmp_path / "zoo.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(run.stdout.splitlines()[-1])
    best = min(rows, key=lambda row: row["fvu"])
    assert (result["pairs"], result["best"]) == (2, ["per-layer", best["nonlinearity"]])
