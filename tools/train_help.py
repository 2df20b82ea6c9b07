"""The stored help of ``open-clt train``; `make train-help` makes it anew when settings or their docstrings change."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from open_clt.training.flags import stored_help

PATH = Path(stored_help.__file__).with_name(stored_help.NAME)


def made_help() -> str:
    """The help that the parser of the command prints, in lines as long as the environment variable COLUMNS says."""
    from open_clt.training.flags.command_line import train_command

    with redirect_stdout(StringIO()) as printed:
        try:
            train_command(["--help"])
        except SystemExit:
            return printed.getvalue()
    raise AssertionError("the help of open-clt train does not end the command")


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    PATH.write_text(f"{stored_help.digest()}\n{made_help()}", encoding="utf-8")
    print(PATH)
