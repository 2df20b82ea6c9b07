"""Mistakes on the command line: a command that ends with status 2 and one line of error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from open_clt.cli import main


def assert_mistake(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], *named: object) -> None:
    """The command ends with status 2 and prints only one line of error, which names each of these values."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.count("\n") == 1
    missing = [str(value) for value in named if str(value) not in error]
    assert not missing, f"{missing} are not named in: {error}"
