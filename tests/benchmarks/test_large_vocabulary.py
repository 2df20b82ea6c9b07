"""The large-vocabulary benchmark at a tiny size: the last line holds the memory of each job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from benchmarks import large_vocabulary


def test_the_last_line_holds_the_memory_of_each_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["large_vocabulary.py", "--vocabulary", "400", "--positions", "64", "--threads", "1"]
    )
    large_vocabulary.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["logits_mb"] == pytest.approx(64 * 400 * 4 / 1e6)
    assert result["peak_mb"] == max(result[f"{job}_mb"] for job in ("measure", "compare", "intervene", "generate"))
