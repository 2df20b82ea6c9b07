"""Files: every artefact is written whole or not at all, and every reader reports a bad file in the same words.

A single file is written under a temporary name in its directory (``.part-NAME``), flushed to the disk, and renamed.
So a reader finds either the former file or the new file, and never half of one.

``saving`` saves several files that belong together as one act, and leaves all other files of their directory alone.
One of these files is the head. It makes the directory valid: without it, readers find no artefact.

    1. Every new file is written under its temporary name. A failure in this step leaves the former artefact untouched.
    2. The former files are renamed to ``.old-NAME``, the head first.
    3. The new files get their final names, the head last.
    4. The former files are deleted.

A failure in step 2 or 3 gives the former files their names back, the head last. A process that is killed in these steps
leaves a directory without a head, so no reader combines the config of one save with the tensors of another. ``saved``
then finds every file of the former artefact under either name. A reader that does not use ``saved`` raises an error
which says that saving was interrupted, and names the former file.

``saving_directory`` replaces a whole directory, which must belong to one artefact alone.

Two processes must not save the same artefact at the same time.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_clt.errors import CheckpointError, ConfigError

_LARGEST_INTEGER = 2**63 - 1
"""Largest integer that a tensor holds; no file of OpenCLT holds a larger one."""

Stage: TypeAlias = Callable[[str], Path]
"""A function from the name of a file to the path at which it is written or read."""


@final
@dataclass(frozen=True)
class FileFormat:
    """A JSON format with a header that states the format's name and version, and the versions that are read."""

    name: str
    newest: int
    oldest: int = 1

    def header(self, version: int | None = None) -> dict[str, Any]:
        """The first keys of a file: the name of the format, and a version, by default the newest."""
        return {"format": self.name, "format_version": self.newest if version is None else version}

    def read(self, path: Path) -> dict[str, Any]:
        """Read a file of this format.

        Raises CheckpointError if the file is missing, damaged, of another format, or of a version that is not read.
        """
        content = read_json(path)
        if not isinstance(content, dict) or cast(dict[str, Any], content).get("format") != self.name:
            raise CheckpointError(f"{path} does not have the format {self.name!r}; check the path.")
        content = cast(dict[str, Any], content)
        version = content.get("format_version")
        if not isinstance(version, int) or not self.oldest <= version <= self.newest:
            versions = f"{self.newest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"
            advice = "update OpenCLT" if isinstance(version, int) and version > self.newest else "save it again"
            raise CheckpointError(
                f"{path} has format version {version!r}, but this OpenCLT reads version {versions}; {advice}."
            )
        return content


def format_of(path: Path) -> str | None:
    """The name of the format that a JSON file states; None if it states none or cannot be read."""
    try:
        content = read_json(path)
    except CheckpointError:
        return None
    name = cast(dict[str, Any], content).get("format") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def missing(path: Path) -> CheckpointError:
    """The error for a file that does not exist, or that an interrupted save left under its ``.old-`` name."""
    if _old(path).exists():
        return CheckpointError(
            f"{path} is missing because saving it was interrupted; save it again, or use the former file {_old(path)}."
        )
    return CheckpointError(f"{path} is missing; check the path or save it again.")


def unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read as a file of its ``kind``: JSON, safetensors, ..."""
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is not a readable {kind} file ({reason}); it is damaged or truncated.")


def kept(path: Path) -> Path:
    """The path of a file or directory, or its ``.old-`` path if a process was killed while it replaced the file."""
    return _old(path) if _old(path).exists() and not path.exists() else path


def saved(directory: Path, head: str) -> Stage:
    """A function from the name of an artefact's file to its path.

    If a process was killed while it saved, the paths are those of the former artefact.
    """
    interrupted = kept(directory / head) != directory / head

    def path_of(name: str) -> Path:
        path = directory / name
        return _old(path) if interrupted and _old(path).exists() else path

    return path_of


def read_bytes(path: Path, kind: str = "binary") -> bytes:
    """Read a file; raises CheckpointError if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, kind, error) from error


def read_text(path: Path, kind: str = "text") -> str:
    """Read a text file in UTF-8; raises CheckpointError if it is missing or cannot be read."""
    try:
        return read_bytes(path, kind).decode()
    except UnicodeDecodeError as error:
        raise unreadable(path, kind, error) from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises ValueError for text that is not JSON, is nested too deeply, or holds an integer of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a JSON file, or a gzip-compressed one if its suffix is ``.gz``; raises CheckpointError if that fails."""
    content = read_bytes(path, "JSON")
    try:
        return parse_json(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise unreadable(path, "JSON", error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; raises CheckpointError if it is missing, truncated or of another kind."""
    try:
        return load_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except (SafetensorError, OSError) as error:
        raise unreadable(path, "safetensors", error) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header row; raises CheckpointError if that fails."""
    lines = read_text(path, "CSV").splitlines(keepends=True)
    try:
        return [dict(row) for row in csv.DictReader(lines)]
    except csv.Error as error:
        raise unreadable(path, "CSV", error) from error


def check_directory(directory: Path) -> None:
    """Raise ConfigError if files cannot be written to a directory, which need not exist yet; nothing is created."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ConfigError(f"{directory} cannot be a directory, because {existing} is a file; give another path.")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"{directory} cannot be written, because {existing} is read-only; give another path.")


def make_directory(directory: Path) -> Path:
    """Create a directory and its parents unless they exist, and return it; raises ConfigError if that is impossible."""
    check_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def writing(path: Path) -> Generator[Path]:
    """Give a temporary path to write a file to, and rename it to ``path`` at the end; a failure leaves ``path`` alone.

    The temporary path has the same suffix. Missing directories are created, and a symbolic link is followed.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ConfigError(f"{path} cannot be a file, because it is a directory; give another path.")
    make_directory(path.parent)
    part = _part(path)
    try:
        part.unlink(missing_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors writes files that other users cannot read
        _flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    with writing(path) as part:
        part.write_bytes(content)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write a text file in UTF-8 and return its path."""
    return write_bytes(path, content.encode())


def write_json(path: Path, content: object, *, strict: bool = False, indent: int | None = 2) -> Path:
    """Write a JSON file and return its path.

    ``strict`` writes ASCII only and raises ValueError for NaN and infinity, which many other programs cannot read.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=not strict, allow_nan=not strict)
    return write_text(path, text + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a safetensors file and return its path."""
    with writing(path) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a CSV file with a header row and return its path; a key that a row lacks is an empty cell."""
    with writing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


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
        return _part(directory / name)

    try:
        yield stage
        if names:
            _exchange(directory, names, _surplus(directory, names, replaces))
    finally:
        for name in names:
            _part(directory / name).unlink(missing_ok=True)


@contextmanager
def saving_directory(path: Path) -> Generator[Path]:
    """Give a temporary directory to write to, which replaces the directory ``path`` and its content at the end."""
    part, old = _part(path), _old(path)
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
            _flush(path.parent)
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
    for leftover in (_part(path), _old(path), path):
        if leftover.exists():
            shutil.rmtree(leftover)


def _exchange(directory: Path, names: Sequence[str], surplus: Sequence[str]) -> None:
    """Rename the former files, the head first, and give the new files their names, the head last."""
    *body, head = names
    for name in names:
        _part(directory / name).stat()  # a file that was never written raises before any file is renamed
    former = [name for name in (head, *body, *surplus) if (directory / name).exists()]
    for name in former:
        _old(directory / name).unlink(missing_ok=True)
    try:
        for name in former:
            (directory / name).replace(_old(directory / name))
        _flush(directory)
        for name in body:
            _part(directory / name).replace(directory / name)
        _flush(directory)
        _part(directory / head).replace(directory / head)
        _flush(directory)
    except BaseException:
        _move_back(directory, [head, *body], former)
        raise
    for name in (*body, head, *surplus):
        _old(directory / name).unlink(missing_ok=True)


def _move_back(directory: Path, names: Sequence[str], former: Sequence[str]) -> None:
    """Undo an exchange: delete the new files, the head first, and restore the former files, the head last."""
    for name in names:
        if not _part(directory / name).exists():
            (directory / name).unlink(missing_ok=True)
    for name in reversed(former):
        if _old(directory / name).exists():
            _old(directory / name).replace(directory / name)


def _surplus(directory: Path, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names of files that match a pattern and are not saved again."""
    matching = sorted({path.name for pattern in patterns for path in directory.glob(pattern)})
    return [name for name in matching if name not in names and not name.startswith((".part-", ".old-"))]


def _part(path: Path) -> Path:
    return path.with_name(f".part-{path.name}")


def _old(path: Path) -> Path:
    return path.with_name(f".old-{path.name}")


def _flush(path: Path) -> None:
    """Wait until a file's content, or the names of a directory's files, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a directory
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse_integer(digits: str) -> int:
    integer = int(digits)
    if abs(integer) > _LARGEST_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... has more than 64 bits")
    return integer
