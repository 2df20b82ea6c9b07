"""The stored help of ``open-clt train``: the same as the parser's, and not used if it is out of date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.training.flags import stored_help

FIX = "`make train-help` stores the help anew"


def test_the_stored_help_is_of_these_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = stored_help.stored_help()
    assert text is not None, FIX
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out == text
    assert "--transcoder.n_features N_FEATURES" in text


def test_a_help_of_other_settings_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_help, "_LIBRARIES", ("pytest",))
    assert stored_help.stored_help() is None


@pytest.mark.slow
def test_the_stored_help_is_that_of_the_parser(repository: Path) -> None:
    """The help lists the known subclasses of a class, so it is made in a process without the classes of other tests."""
    made = subprocess.run(
        [sys.executable, "-c", "from tools.train_help import made_help; print(made_help(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert made.stdout == stored_help.stored_help(), FIX


def test_help_imports_no_library(repository: Path) -> None:
    code = (
        "import sys; from open_clt.cli import main; main(['train', '--help']); "
        "print(*{'torch', 'lightning', 'jsonargparse', 'numpy'} & {*sys.modules}, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert result.stderr == "\n"
