"""Outcomes: what a reader does with a damaged artefact, counted over many mutations.

A reader may refuse the artefact with an error of ours that names it, or may accept it when the damage is harmless.
Everything else is a fault: another exception, a wait without end, a large growth of memory, a non-finite number.
"""

from __future__ import annotations

import re
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from open_clt.errors import OpenCLTError
from tests.faults.mutations import copy_folder, mutate
from tests.faults.reading.reader import Reader
from tests.faults.reading.table import READERS

LONGEST_SECONDS = 10
"""Seconds after which a reader counts as hanging; ordinary reads take a few milliseconds."""

LARGEST_GROWTH = 512 << 20
"""Bytes by which one read of a file of a few kilobytes may raise the peak of the process's memory."""

FAULTS = ("other", "hang", "growth", "non-finite")
"""Outcomes that are faults of the reader; the others are ``own error`` and ``accepted``."""


class Hang(BaseException):
    """A reader that did not end in time; no reader catches it."""


@dataclass
class Tally:
    """Counts of outcomes, and a description of each fault."""

    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    def add(self, outcome: str, description: str) -> None:
        """Count one outcome; ``description`` is kept if it is a fault."""
        self.counts[outcome] += 1
        if outcome in FAULTS:
            self.faults.append(f"{outcome}: {description}")


def attack(name: str, seeds: Iterable[int], folder: Path) -> Tally:
    """Let one reader read an artefact that is damaged anew with each seed; ``folder`` is an empty working folder."""
    reader, tally = READERS[name], Tally()
    (folder / "whole").mkdir(parents=True)
    reader.write(folder / "whole")
    list(reader.read(folder / "whole"))  # an undamaged artefact is read
    for seed in seeds:
        copy_folder(folder / "whole", folder / "damaged")
        random = Random(f"{name} {seed}")
        damage = mutate(folder / "damaged", random)
        outcome, detail = _outcome(reader, folder / "damaged")
        tally.add(outcome, f"{name}, seed {seed}, {damage}: {detail}")
    return tally


def _outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _time_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            numbers = list(reader.read(folder))
        except OpenCLTError as error:
            message = str(error)
            is_named = folder.name in message or bool(reader.names and re.search(reader.names, message))
            is_clear = len(message) <= 300 and "\n" not in message and is_named
            return ("own error", "") if is_clear else ("other", f"the message does not name the folder: {message}")
        except Hang:
            return "hang", ""
        except Exception as error:  # noqa: BLE001  (any exception that is not ours is the fault that is looked for)
            return "other", f"{type(error).__name__}: {str(error)[:200]}"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if growth > LARGEST_GROWTH:
        return "growth", f"{growth >> 20} MiB"
    finite = all(bool(torch.as_tensor(number, dtype=torch.float64).isfinite().all()) for number in numbers)
    return ("accepted", "") if finite else ("non-finite", "")


@contextmanager
def _time_limit() -> Generator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
