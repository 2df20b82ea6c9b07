"""Saving: several files that belong together are saved as one act, and found again after an interrupted save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from open_clt.files.places import check_directory, flush, make_directory, old_path, part_path

Stage: TypeAlias = Callable[[str], Path]
"""A function from the name of a file to the path at which it is written or read."""


def kept(path: Path) -> Path:
    """The path of a file or directory, or its ``.old-`` path if a process was killed while it replaced the file."""
    return old_path(path) if old_path(path).exists() and not path.exists() else path


def saved(directory: Path, head: str) -> Stage:
    """A function from the name of an artefact's file to its path.

    If a process was killed while it saved, the paths are those of the former artefact.
    """
    interrupted = kept(directory / head) != directory / head

    def path_of(name: str) -> Path:
        path = directory / name
        return old_path(path) if interrupted and old_path(path).exists() else path

    return path_of


@contextmanager
def saving(directory: Path, *, replaces: Sequence[str] = ()) -> Generator[Stage]:
    """Save several files of a directory as one act: all of them or none.

    The block gets a function from the name of a file to the path to write it to. The last file that the block asks for
    is the head, which makes the directory valid. ``replaces`` are glob patterns: files that match one of them belong to
    the former artefact and are deleted if the block does not write them again.
    """
    make_directory(directory)
    names: list[str] = []

    def stage(name: str) -> Path:
        names.append(name)
        return part_path(directory / name)

    try:
        yield stage
        if names:
            _exchange(directory, names, _surplus(directory, names, replaces))
    finally:
        for name in names:
            part_path(directory / name).unlink(missing_ok=True)


@contextmanager
def saving_directory(path: Path) -> Generator[Path]:
    """Give a temporary directory to write to, which replaces the directory ``path`` and its content at the end."""
    part, old = part_path(path), old_path(path)
    shutil.rmtree(part, ignore_errors=True)
    check_directory(path)
    make_directory(path.parent)
    part.mkdir()
    try:
        yield part
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        try:
            part.replace(path)
            flush(path.parent)
        except BaseException:
            if not part.exists():
                path.replace(part)
            if old.exists():
                old.replace(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a directory and the directories that an interrupted save left beside it."""
    for leftover in (part_path(path), old_path(path), path):
        if leftover.exists():
            shutil.rmtree(leftover)


def _exchange(directory: Path, names: Sequence[str], surplus: Sequence[str]) -> None:
    """Rename the former files, the head first, and give the new files their names, the head last."""
    *body, head = names
    for name in names:
        part_path(directory / name).stat()  # a file that was never written raises before any file is renamed
    former = [name for name in (head, *body, *surplus) if (directory / name).exists()]
    for name in former:
        old_path(directory / name).unlink(missing_ok=True)
    try:
        for name in former:
            (directory / name).replace(old_path(directory / name))
        flush(directory)
        for name in body:
            part_path(directory / name).replace(directory / name)
        flush(directory)
        part_path(directory / head).replace(directory / head)
        flush(directory)
    except BaseException:
        _move_back(directory, [head, *body], former)
        raise
    for name in (*body, head, *surplus):
        old_path(directory / name).unlink(missing_ok=True)


def _move_back(directory: Path, names: Sequence[str], former: Sequence[str]) -> None:
    """Undo an exchange: delete the new files, the head first, and restore the former files, the head last."""
    for name in names:
        if not part_path(directory / name).exists():
            (directory / name).unlink(missing_ok=True)
    for name in reversed(former):
        if old_path(directory / name).exists():
            old_path(directory / name).replace(directory / name)


def _surplus(directory: Path, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names of files that match a pattern and are not saved again."""
    matching = sorted({path.name for pattern in patterns for path in directory.glob(pattern)})
    return [name for name in matching if name not in names and not name.startswith((".part-", ".old-"))]
