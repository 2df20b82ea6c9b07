"""Processes that run one command together on a machine: only the first one to end prints its line.

All of them meet the same mistake, or the end of one process is an error in the others. So any of them may be the first
one, and the mark is a directory that the first one makes. torchrun shares a temporary directory with its processes.
Lightning's first process starts the others, so its environment names the mark.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_MARK = "OPEN_CLT_FIRST_LINE"
"""The environment variable that names the mark of processes that Lightning started."""
_LAUNCHED = "LOCAL_RANK"
"""The environment variable that launchers set in each process; Lightning sets it in the first one, too."""
_LONGEST_WAIT = 3.0
"""Seconds for which a process waits for the others: for their line, or before it deletes their mark."""


def join_processes() -> None:
    """Share one line with the processes that this one may start, or that started it; a program calls this once."""
    if os.environ.get(_LAUNCHED, "0") != "0":  # the first process of the machine logs the same warnings
        logging.disable(logging.WARNING)
    with suppress(OSError):  # there is no directory for temporary files
        if _MARK not in os.environ:
            os.environ[_MARK] = str(Path(tempfile.gettempdir()) / f"open-clt-{os.urandom(16).hex()}")
            atexit.register(_remove_mark, Path(os.environ[_MARK]))


def is_first_to_speak() -> bool:
    """Whether no other process of the command on this machine has printed its line; a process asks once."""
    mark = _mark()
    if mark is None:
        return True
    try:
        mark.mkdir()
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def another_speaks() -> bool:
    """Whether another process prints the line; a process asks when it has lost another one, which may say why.

    Waits while the others may still be about to print. It does not when a process that this one started, or that
    started this one, has ended without a line: Lightning soon kills the first process without a line, too.
    """
    mark, parent = _mark(), os.getppid()
    if mark is None:
        return False
    deadline = time.monotonic() + _LONGEST_WAIT
    while time.monotonic() < deadline:
        may_be_killed = _a_child_has_ended() or os.getppid() != parent  # asked before the mark, which is made earlier
        if mark.exists():
            return True
        if may_be_killed:
            return False
        time.sleep(0.05)
    return mark.exists()


def is_one_of_several() -> bool:
    """Whether other processes may run the same command together with this one."""
    return _mark() is not None


def _mark() -> Path | None:
    """The directory that the first process to end makes; None if this process runs alone."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # such as .../attempt_0/1/error.json, of process 1
    if error_file is not None:
        parents = Path(error_file).parents
        return parents[1] / "open-clt-has-printed" if len(parents) > 1 else None
    mark = os.environ.get(_MARK)
    return Path(mark) if mark and _LAUNCHED in os.environ else None


def _a_child_has_ended() -> bool:
    """Whether a process that this one started has ended; its status stays for those who wait for it."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except (ChildProcessError, AttributeError):  # there is none, or its status was read already; or Windows
        return False


def _remove_mark(mark: Path) -> None:
    """Delete the mark, unless a process that this one started still runs and may look for it."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while mark.exists():
        try:
            running = os.waitpid(-1, os.WNOHANG) == (0, 0)
        except (ChildProcessError, AttributeError):  # there is none left; or Windows, which cannot ask
            with suppress(OSError):
                mark.rmdir()
            return
        if running:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
