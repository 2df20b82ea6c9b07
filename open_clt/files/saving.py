"""Saving: several files that belong together are saved as one act, and found again after an interrupted save."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast, final

from open_clt.errors import CheckpointError
from open_clt.files.disk_errors import disk_errors
from open_clt.files.places import check_file, check_readable, flush, is_inside, make_directory, old_path, part_path
from open_clt.files.reading import FileFormat
from open_clt.files.writing import write_json

Stage: TypeAlias = Callable[[str], Path]
"""A function from the name of a file to the path at which it is written."""
_Content = TypeVar("_Content")

_JOURNAL = FileFormat("open-clt-save", newest=1)
_TRIES = 100
"""How often a reader starts again because another process saves the artefact meanwhile."""


@final
@dataclass(frozen=True)
class Saved:
    """The files of a saved artefact; after an interrupted save, those of the former artefact."""

    directory: Path
    former: tuple[str, ...] | None
    """The names of the former artefact's files if a save was interrupted; None otherwise."""

    def __call__(self, name: str) -> Path:
        """The path of a file of the artefact."""
        path = self.directory / name
        return old_path(path) if self.former and name in self.former and old_path(path).exists() else path

    def names(self, pattern: str) -> list[str]:
        """The names of the artefact's files that match a pattern; only ``/`` in it leads into sub-folders."""
        if self.former is not None:
            return matching(self.former, pattern)
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):  # another save removed a sub-folder meanwhile
                paths = list(self.directory.glob(pattern))
                return matching((path.relative_to(self.directory).as_posix() for path in paths), pattern)
        raise _saved_too_often(self.directory)


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names of files that match a pattern and lie as many folders deep as it says, sorted."""
    depth = pattern.count("/")
    return sorted(name for name in names if name.count("/") == depth and fnmatchcase(name, pattern))


def saved(directory: Path, head: str) -> Saved:
    """The files of an artefact with this head; if a save of it was interrupted, the files of the former artefact.

    Raises CheckpointError if the user may not read the directory.
    """
    check_readable(directory)
    if (directory / head).exists() or not is_interrupted(directory, head):
        return Saved(directory, None)
    try:
        return Saved(directory, _read_journal(directory, head).former)
    except CheckpointError:
        if is_interrupted(directory, head):
            raise
        return Saved(directory, None)  # the save has ended meanwhile


def can_be_read(directory: Path, head: str) -> bool:
    """Whether an artefact with this head is there; a first save that was interrupted leaves none."""
    return saved(directory, head)(head).exists()


def is_interrupted(directory: Path, head: str) -> bool:
    """Whether a save of an artefact with this head is in progress, or was interrupted."""
    return _journal_path(directory, head).exists()


def read_saved(directory: Path, head: str, read: Callable[[Saved], _Content]) -> _Content:
    """Read an artefact with the function ``read``, and read it again if it was saved meanwhile.

    So the files that ``read`` combines are those of one save. Raises what ``read`` raises, and CheckpointError if the
    user may not read the directory.
    """
    for _ in range(_TRIES):
        state = _state(directory, head)
        try:
            content = read(saved(directory, head))
        except CheckpointError:
            if _state(directory, head) == state:
                raise
            continue
        if _state(directory, head) == state:
            return content
    raise _saved_too_often(directory / head)


def read_saved_file(path: Path, read: Callable[[Path], _Content]) -> _Content:
    """Read one file of an artefact without the others, and read it again if it was saved meanwhile.

    ``read`` gets the path, or that of the former file if a save was interrupted. Raises what ``read`` raises.
    """
    former = old_path(path)
    for _ in range(_TRIES):
        state = _stamp(path), _stamp(former)
        try:
            return read(former if state[0] is None and state[1] is not None else path)
        except CheckpointError:
            if (_stamp(path), _stamp(former)) == state:
                raise
    raise _saved_too_often(path)


def _saved_too_often(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is saved so often that it cannot be read; wait, and read it again.")


@contextmanager
def saving(directory: Path, *, replaces: Iterable[str] = ()) -> Generator[Stage]:
    """Save several files of a directory as one act: all of them or none.

    The block gets a function from the name of a file to the path to write it to. The last file that the block asks for
    is the head, which makes the directory valid. ``replaces`` are the names of the former artefact's files: those that
    the block does not write again are deleted.
    """
    make_directory(directory)
    names: list[str] = []

    def stage(name: str) -> Path:
        check_file(directory / name)
        names.append(name)
        part = part_path(directory / name)
        part.unlink(missing_ok=True)  # it may be a link to another file, which writing would follow
        return part

    try:
        yield stage
        if names:
            for name in names:
                part_path(directory / name).stat()  # a file that was never written raises before any file is renamed
            with disk_errors(directory):
                finish_save(directory, names[-1], next_names=names)
                _exchange(directory, names, [name for name in replaces if name not in names])
    finally:
        for name in names:
            part_path(directory / name).unlink(missing_ok=True)
        _remove_empty_folders(directory, names)


def remove_saved(directory: Path, head: str, names: Iterable[str] = ()) -> None:
    """Delete the files of an artefact, and those that an interrupted save left of them."""
    names = (head, *names)
    _write_journal(
        directory, head, _Journal(former=(), new=names)
    )  # it says that the files are ours until all are gone
    for name in names:
        path = directory / name
        for leftover in (path, part_path(path), old_path(path)):
            leftover.unlink(missing_ok=True)
    _journal_path(directory, head).unlink(missing_ok=True)
    _remove_empty_folders(directory, names)


@final
@dataclass(frozen=True)
class _Journal:
    """What a save does: the names of the former files and of the new files, each with the head first."""

    former: tuple[str, ...]
    new: tuple[str, ...]


def _exchange(directory: Path, names: Sequence[str], surplus: Sequence[str]) -> None:
    """Rename the former files, the head first, and give the new files their names, the head last."""
    *body, head = names
    former = [name for name in (head, *body, *surplus) if (directory / name).exists()]
    for name in former:
        old_path(directory / name).unlink(missing_ok=True)
    journal = _Journal(tuple(former), (head, *body))
    try:
        _write_journal(directory, head, journal)
        for name in former:
            (directory / name).replace(old_path(directory / name))
        _flush_folders(directory, (*former, *names))
        for name in body:
            part_path(directory / name).replace(directory / name)
        _flush_folders(directory, body)
        part_path(directory / head).replace(directory / head)
        _flush_folders(directory, (head,))
    except BaseException:
        _move_back(directory, journal)
        _journal_path(directory, head).unlink(missing_ok=True)
        raise
    _end(directory, head, journal)


def finish_save(directory: Path, head: str, *, next_names: Sequence[str] = ()) -> None:
    """Undo a save that was interrupted before its head had its name, and delete the files that it left.

    ``next_names`` are the files of the next save, which may be written already. Without such a save, nothing changes.
    """
    if not is_interrupted(directory, head):
        return
    journal = _read_journal(directory, head)
    if not (directory / head).exists():
        _move_back(directory, journal)
    for name in set(journal.new) - set(next_names):
        part_path(directory / name).unlink(missing_ok=True)
    _end(directory, head, journal)


def _move_back(directory: Path, journal: _Journal) -> None:
    """Undo an exchange: delete the new files, the head first, and restore the former files, the head last."""
    for name in journal.new:
        if name not in journal.former or old_path(directory / name).exists():
            (directory / name).unlink(missing_ok=True)
    for name in reversed(journal.former):
        if old_path(directory / name).exists():
            old_path(directory / name).replace(directory / name)


def _end(directory: Path, head: str, journal: _Journal) -> None:
    for name in journal.former:
        old_path(directory / name).unlink(missing_ok=True)
    _journal_path(directory, head).unlink(missing_ok=True)
    _remove_empty_folders(directory, (*journal.former, *journal.new))


def _folders(directory: Path, names: Iterable[str]) -> list[Path]:
    """The sub-folders of a directory that files with these names lie in, sorted."""
    return sorted({(directory / name).parent for name in names} - {directory})


def _flush_folders(directory: Path, names: Iterable[str]) -> None:
    """Wait until the names of files in a directory and its sub-folders are on the disk."""
    for folder in (directory, *_folders(directory, names)):
        flush(folder)


def _remove_empty_folders(directory: Path, names: Iterable[str]) -> None:
    """Remove those sub-folders of a directory that files with these names lay in, and that are empty now."""
    for folder in _folders(directory, names):
        with suppress(OSError):  # it holds other files, or it is removed already
            folder.rmdir()


def _journal_path(directory: Path, head: str) -> Path:
    path = directory / head
    return path.with_name(f".saving-{path.name}.json")


def _write_journal(directory: Path, head: str, journal: _Journal) -> None:
    write_json(_journal_path(directory, head), {**_JOURNAL.header(), **vars(journal)})


def _read_journal(directory: Path, head: str) -> _Journal:
    path = _journal_path(directory, head)
    content = _JOURNAL.read(path)
    match content:
        case {"former": list(former), "new": list(new)}:
            names = [*cast(list[Any], former), *cast(list[Any], new)]
            if all(is_inside(name) for name in names):
                return _Journal(tuple(cast(list[str], former)), tuple(cast(list[str], new)))
        case _:
            pass
    raise CheckpointError(f"{path} does not name the files of an interrupted save; delete it.")


def _state(directory: Path, head: str) -> object:
    """A value that changes whenever a save of the artefact begins, renames a file of the former artefact, or ends."""
    former = saved(directory, head).former or ()
    moved = tuple(old_path(directory / name).exists() for name in former)
    return _stamp(directory / head), _stamp(_journal_path(directory, head)), moved


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
