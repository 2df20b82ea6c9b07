"""Servers in processes of their own, as ``open-clt serve`` starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""The status with which each signal ends a command."""


def _restore_handlers() -> None:
    """A suite that runs in the background ignores signals, and so would the command."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


_WITH_PIECES = (
    "import sys; from open_clt.data.server import client; client.PIECE = int(sys.argv.pop(1)); "
    "from open_clt.cli import main; sys.exit(main())"
)
"""A program that runs a command whose uploads are sent in pieces of as many bytes as the first argument says."""


@contextmanager
def command(*arguments: str, piece: int = 0) -> Generator[subprocess.Popen[str]]:
    """``open-clt`` in a process of its own, which is killed at the end; ``piece`` is the size of an upload's pieces."""
    program = ["-c", _WITH_PIECES, str(piece)] if piece else ["-m", "open_clt"]
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_restore_handlers,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def serving(directory: Path, *options: str, port: int = 0) -> AbstractContextManager[subprocess.Popen[str]]:
    """``open-clt serve DIRECTORY`` in a process of its own."""
    return command("serve", str(directory), "--port", str(port), *options)


def address_of(process: subprocess.Popen[str]) -> str:
    """The address that the command prints in its first line, without a slash at the end."""
    assert process.stdout is not None
    line = process.stdout.readline()
    matched = re.fullmatch(r"datasets: \d+, at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C ends the server\)\n", line)
    assert matched, line
    return matched[1]


def ends(process: subprocess.Popen[str], number: int) -> str:
    """Send a signal, check that the command ends with its status and one line, and return stderr before this line."""
    process.send_signal(number)
    printed, error = process.communicate(timeout=120)
    assert (process.returncode, printed) == (STATUS[signal.Signals(number)], ""), error
    *before, last = error.splitlines()
    assert last.startswith("open-clt: ")
    return "\n".join(before)
