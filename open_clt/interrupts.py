"""Interrupts: a signal ends a program at once while it imports its modules, with one line and a status of its own.

Programs import this module first. It imports little, so there is little time in which a signal gives a traceback.
"""

from __future__ import annotations

import os
import signal

NAMES: dict[int, str] = {signal.SIGINT: "Interrupted (Ctrl-C)", signal.SIGTERM: "Terminated (SIGTERM)"}
"""The signals that programs handle, and what the line on stderr says about each."""
if hasattr(signal, "SIGHUP"):  # Windows does not have it
    NAMES[signal.SIGHUP] = "Terminated, because the terminal was closed (SIGHUP)"


def end_on_signals(program: str) -> None:
    """Make signals end this process at once; a program calls this before it imports anything else."""

    def end(number: int, frame: object) -> None:
        os.write(2, f"{program}: {NAMES[number]}.\n".encode())
        os._exit(128 + number)

    for number in NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
