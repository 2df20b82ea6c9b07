"""``open-clt embedded evaluate`` says what the embedded model knows, and fails where it knows too little."""

from __future__ import annotations

import pytest

from open_clt.cli import main


def test_evaluate_prints_a_row_for_every_task_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "evaluate", "--limit", "30"]) == 0
    printed = capsys.readouterr().out
    for task in ("capitals", "two_hop", "induction", "indirect_object"):
        assert task in printed


def test_evaluate_fails_when_a_row_is_below_its_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clt.embedded import evaluation

    monkeypatch.setitem(evaluation.BARS, "capitals", 1.01)
    assert main(["embedded", "evaluate", "--limit", "5"]) == 1
    assert "NO" in capsys.readouterr().out
