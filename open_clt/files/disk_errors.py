"""Disk errors: a file that cannot be written is one sentence, whichever library writes it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from open_clt.errors import ResourceError

PART = ".part-"
"""Beginning of the temporary name under which a file is written; errors leave it out."""

_TOO_SMALL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "the system limits the size of a file (ulimit -f)",
}
_FORBIDDEN = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Generator[None]:
    """Turn errors of the disk in the block, which writes the file or directory ``path``, into ResourceError.

    ``needed`` is the number of bytes to be written, if it is known. Other errors are raised as they are.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number in _TOO_SMALL:
            numbers = ", ".join(_bytes_needed(needed) + _bytes_free(path))
            reason = f"{_TOO_SMALL[number]}{f' ({numbers})' if numbers else ''}"
            ways = "delete files that are not needed, or give a path on another disk"
        elif number in _FORBIDDEN:
            reason, ways = _FORBIDDEN[number], "give another path, or change its permissions"
        else:
            raise
        raise ResourceError(f"{final_path(path)} cannot be written, because {reason}; {ways}.") from error


def free_bytes(directory: Path) -> int:
    """Number of free bytes on the disk of a directory, which need not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def check_disk(directory: Path, needed: int) -> None:
    """Raise ResourceError if the disk of a directory, which need not exist yet, has fewer free bytes than needed."""
    free = free_bytes(directory)
    if needed > free:
        raise ResourceError(
            f"{directory} needs {needed:,} bytes, and {free:,} bytes are free on its disk; write less, delete files "
            "that are not needed, or give a path on another disk."
        )


def final_path(path: Path) -> Path:
    """The path that a file has when it is written; errors name it instead of the temporary path."""
    return path.with_name(re.sub(f"^({re.escape(PART)})+", "", path.name))  # a save has parts of parts


def _number(error: Exception) -> int | None:
    """The system's number of an error; safetensors, which is written in Rust, states it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    stated = re.search(r"\(os error (\d+)\)", str(error))
    return int(stated[1]) if stated else None


def _bytes_needed(needed: int | None) -> list[str]:
    return [] if needed is None else [f"{needed:,} bytes are needed"]


def _bytes_free(path: Path) -> list[str]:
    """The free bytes of a file's disk, including those that its own unfinished copy takes."""
    try:
        written = path.stat().st_blocks * 512 if path.is_file() else 0
        return [f"{shutil.disk_usage(path.parent).free + written:,} bytes are free"]
    except (OSError, AttributeError):  # Windows does not count blocks
        return []
