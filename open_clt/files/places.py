"""Places: the directories that files are written to, and the temporary names of files beside them."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from open_clt.errors import CheckpointError, ConfigError, short_value
from open_clt.files.disk_errors import PART, disk_errors

_LONGEST_NAME = 255
"""Largest number of bytes that file systems allow for the name of a file or folder."""


def check_directory(directory: Path) -> None:
    """Raise ConfigError if files cannot be written to a directory, which need not exist yet; nothing is created."""
    _check_possible(directory)
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ConfigError(f"{directory} cannot be a directory, because {existing} is a file; give another path.")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"{directory} cannot be written, because {existing} is read-only; give another path.")


def check_file(path: Path) -> None:
    """Raise ConfigError if a file cannot be written to a path; nothing is created."""
    _check_possible(path)
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ConfigError(f"{path} cannot be a file, because it is a directory; give another path.")
    check_directory(path.parent)


def _check_possible(path: Path) -> None:
    """Raise ConfigError if no file can have a path, because it holds a NUL or half a character (a lone surrogate)."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise ConfigError(f"{short_value(path)} cannot be a path ({error}); give another path.") from error
    except OSError:
        pass  # other checks report it, or it does not exist yet


def existing_path(name: str) -> Path | None:
    """The path that a user names, in which ``~`` is the home directory; None if there is no such file or directory.

    Raises CheckpointError if the user may not read it.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # a user without a home directory
        return None
    check_readable(path)
    try:
        return path if name and path.exists() else None
    except (OSError, ValueError):  # too long for a file, a null
        return None


def check_readable(path: Path) -> None:
    """Raise CheckpointError if the user has no permission to read a file or directory; one that does not exist passes.

    Python takes a directory that may not be searched for one without the file that is looked for.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(os.path.join(path, ".")).close()  # noqa: PTH118  (the dot asks for the right to search it)
        elif stat.S_ISREG(mode):
            os.close(os.open(path, os.O_RDONLY))
    except PermissionError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check its permissions, or give another path."
        ) from error
    except (OSError, ValueError):
        pass  # readers report it


def make_directory(directory: Path) -> Path:
    """Create a directory and its parents unless they exist, and return it; raises ConfigError if that is impossible."""
    check_directory(directory)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def is_inside(name: object) -> bool:
    """Whether a name that stands in a file is relative, stays inside the directory of that file, and is not a URL.

    Names that are too long for a file are not inside either; a message could not show them and the directory.
    """
    if not isinstance(name, str) or not name.isprintable() or "://" in name:
        return False
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in name.split("/")):
        return False
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return all(path.parts and not path.anchor and ".." not in path.parts for path in paths)


def part_path(path: Path) -> Path:
    """The temporary name under which a file is written."""
    return path.with_name(f"{PART}{path.name}")


def old_path(path: Path) -> Path:
    """The temporary name of a former file while it is replaced."""
    return path.with_name(f".old-{path.name}")


def flush(path: Path) -> None:
    """Wait until a file's content, or the names of a directory's files, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a directory
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
