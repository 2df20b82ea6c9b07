"""A reader of files, as a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """A function that reads and uses an artefact, and one that writes a valid artefact for it."""

    write: Callable[[Path], object]
    read: Callable[[Path], Iterable[Tensor | float]]
    """Reads the artefact in a folder, uses it, and returns those of its numbers that must be finite."""
    module: str
    """Module of the package that holds the reader, such as ``graphs.graph``."""
    names: str = ""
    """Regular expression of what a message may name instead of the file, such as a setting that the file holds."""
    slow: bool = False
    """Whether one call takes a large part of a second; such readers are left out of the default tier."""


def nothing(read: Callable[[Path], object]) -> Callable[[Path], Iterable[float]]:
    """Return a reader whose numbers need not be checked."""

    def call(folder: Path) -> Iterable[float]:
        read(folder)
        return ()

    return call
