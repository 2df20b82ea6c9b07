"""Progress bars: they appear where somebody can watch them, and nowhere else."""

from __future__ import annotations

import warnings

import pytest
import rich.console

from open_clt import progress
from open_clt.progress import progress_bar


def run_bar(**settings: bool) -> None:
    with progress_bar("working", **settings) as bar:
        for _ in bar.track(range(3)):
            pass


def test_a_pipe_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run_bar()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_shows_a_bar_on_standard_error_if_it_is_wanted(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat standard error as a terminal
    run_bar(shown=shown)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("working" in printed.err) == ("3/3" in printed.err) == shown


def test_a_notebook_without_ipywidgets_shows_a_bar_and_no_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_bar()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err
