"""``open-clt embedded evaluate``: it prints the accuracy on every task and fails if one is too low."""

from __future__ import annotations

import pytest

from open_clt.cli import main
from tests.commands.mistakes import assert_mistake


@pytest.mark.slow
def test_every_task_gets_a_row_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "evaluate", "--limit", "30"]) == 0
    printed = capsys.readouterr().out
    for task in ("capitals", "two_hop", "induction", "indirect_object"):
        assert task in printed


def test_an_accuracy_below_its_bar_gives_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clt.embedded import evaluation

    monkeypatch.setitem(evaluation.BARS, "capitals", 1.01)
    assert main(["embedded", "evaluate", "--limit", "5"]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "9" * 23])
def test_a_limit_that_is_not_a_count_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["embedded", "evaluate", f"--limit={limit}"], "--limit", limit)
