"""The lock of a directory: at most one run of OpenCLT writes to a directory at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from open_clt.errors import ConfigError
from open_clt.files.disk_errors import disk_errors
from open_clt.files.places import make_directory

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there, two runs in one directory are not noticed
    fcntl = None

_LOCK = ".open-clt.lock"


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Hold the lock of a directory, which is created if it does not exist; the lock ends with the process.

    Raises ConfigError if another run holds the lock. A directory that was created and is still empty at the end is
    deleted.
    """
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    make_directory(directory)
    path = directory / _LOCK
    try:
        descriptor = _lock(path)
        try:
            yield
        finally:
            if descriptor is not None:
                try:
                    path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)
    finally:
        with suppress(OSError):  # the first directory that is not empty ends the loop
            for empty in created:
                empty.rmdir()


@contextmanager
def taking_turns(directory: Path) -> Generator[None]:
    """Let one process at a time run the block for a directory, which is created if it does not exist; others wait.

    The processes of one run change the same file in such a block. On a system or file system without locks, they do not
    wait.
    """
    make_directory(directory)
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """Lock a file, which is created if it does not exist; return None on a system or file system without locks."""
    while fcntl is not None:
        _check_empty(path)
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"{path.parent} is in use by another run of OpenCLT; wait until it ends, or give another directory."
            ) from error
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        # The holder deletes the file before it releases the lock, so the lock may be that of a deleted file.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
    return None


def _check_empty(path: Path) -> None:
    """Raise ConfigError if something else than the empty file of a lock has its name, which the lock would delete."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            raise ConfigError(f"{path} is not a lock of OpenCLT, an empty file; move it, or give another path.")
