"""Opening: only regular files are opened, and a name that stands in a file stays inside the folder of that file.

A FIFO would make a reader wait for ever, and a device may have no end. Symbolic links are followed, because the cache
of the Hugging Face hub consists of them; what they lead to must be a regular file.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from open_clt.errors import CheckpointError
from open_clt.files.limits import LARGEST_TEXT, too_large
from open_clt.files.places import is_inside

_SPECIAL = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_FROM_SHELL = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Beginnings of the paths under which a shell passes its own pipes, as in ``--prompts <(command)``."""


def check_regular(path: Path) -> None:
    """Raise CheckpointError if a path exists and is not a regular file; nothing is opened.

    Standard input and pipes of the user's own shell (``/dev/stdin``, ``/dev/fd/63``) count as regular files.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening the file reports what is wrong
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and str(path).startswith(_FROM_SHELL)):
        return
    kind = next((name for is_kind, name in _SPECIAL if is_kind(mode)), "a special file")
    raise CheckpointError(f"{path} is {kind}, not a regular file; give the path of a regular file.")


@contextmanager
def opened(path: Path, *, unpack: bool = True) -> Generator[BinaryIO]:
    """Open a regular file for reading; with ``unpack``, a file with the suffix ``.gz`` is unpacked as it is read.

    Raises CheckpointError if it is not a regular file, and the same errors as ``open`` and ``gzip``.
    """
    check_regular(path)
    with path.open("rb") as file:
        if unpack and path.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=file) as unpacked_file:
                yield cast(BinaryIO, unpacked_file)
        else:
            yield file


def read_lines(path: Path, *, limit: int = LARGEST_TEXT) -> Iterator[bytes]:
    """Yield the lines of a file, unpacked if its suffix is ``.gz``, with their ends; one line at a time is in memory.

    Raises CheckpointError if the file is not regular, cannot be read, or has a line of more than ``limit`` bytes.
    """
    try:
        with opened(path) as file:
            while line := file.readline(limit + 1):
                if len(line) > limit:
                    raise too_large(f"A line of {path}", limit)
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); check the path, or make the file again.") from error


def inside(directory: Path, name: object) -> Path:
    """The path of a file in a directory, where ``name`` stands in a file that may come from a stranger.

    Raises CheckpointError if the name is empty, is not a text, is an absolute path or a URL, or contains ``..``.
    """
    if is_inside(name):
        return directory / cast(str, name)
    raise CheckpointError(
        f"A file in {directory} names the file {_short(name)}, which is not a name inside {directory}; such names are "
        "not followed."
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
