"""Ownership: which files of a directory OpenCLT wrote, so that it may replace or delete them.

A file is ours if its format says so (its artefact's JSON file states a format of OpenCLT), or if the directory's
manifest lists it. The manifest, ``.open-clt.json``, lists the names of files whose format has no such mark, such as CSV
files and pictures. Names are relative to the directory of the manifest.

Results that are computed again by nature, such as reports and figures, replace files of the same names. If a directory
has a manifest, they replace only the files that it lists; a directory without one holds results of an older version.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from open_clt.errors import CheckpointError, ConfigError
from open_clt.files.lock import locked, taking_turns
from open_clt.files.places import check_directory, is_inside
from open_clt.files.reading import FileFormat, format_of
from open_clt.files.saving import is_interrupted
from open_clt.files.writing import write_json

MANIFEST = ".open-clt.json"
_FORMAT = FileFormat("open-clt-directory", newest=1)


def listed_names(directory: Path) -> frozenset[str]:
    """The names that a directory's manifest lists; raises CheckpointError if the manifest cannot be read."""
    path = directory / MANIFEST
    if not path.exists():
        return frozenset()
    names = _FORMAT.read(path).get("names")
    if not isinstance(names, list) or not all(is_inside(n) for n in cast(list[Any], names)):
        raise CheckpointError(f"{path} does not list names of files in its directory; delete it.")
    return frozenset(cast(list[str], names))


def list_names(directory: Path, names: Iterable[str]) -> None:
    """Add names to a directory's manifest, before files of these names are written; several processes may do so."""
    with taking_turns(directory):
        listed = listed_names(directory)
        if missing := set(names) - listed:
            write_json(directory / MANIFEST, {**_FORMAT.header(), "names": sorted(listed | missing)})


def is_ours(directory: Path, head: str, *formats: FileFormat) -> bool:
    """Whether an artefact's head states one of these formats, or a save by OpenCLT was interrupted there."""
    return is_interrupted(directory, head) or format_of(directory / head) in [fmt.name for fmt in formats]


def check_ours(directory: Path, names: Iterable[str]) -> None:
    """Raise ConfigError if a file or directory that the manifest does not list stands under one of the names."""
    listed = listed_names(directory)
    for name in names:
        if name not in listed and os.path.lexists(directory / name):
            raise foreign(directory / name)


def check_artefact(directory: Path, names: Sequence[str], *formats: FileFormat) -> None:
    """Raise ConfigError if an artefact cannot be saved in a directory, because it would replace other files.

    ``names`` are the names of the artefact's files. The first is its head, which states one of the formats.
    """
    check_directory(directory)
    if not is_ours(directory, names[0], *formats):
        check_ours(directory, names)


def check_results(directory: Path, names: Iterable[str]) -> None:
    """Raise ConfigError if results of these names cannot be written, because they would replace other files."""
    check_directory(directory)
    has_manifest = (directory / MANIFEST).exists()
    for name in names:
        if has_manifest:
            check_ours(directory, [name])
        if (directory / name).is_dir():
            raise foreign(directory / name)


@contextmanager
def results(directory: Path | None, names: Iterable[str] = ()) -> Generator[None]:
    """Check a directory of results (``check_results``), and hold its lock; None means that nothing is written."""
    if directory is None:
        yield
        return
    with locked(directory):
        check_results(directory, names)
        yield


def foreign(path: Path) -> ConfigError:
    """The error for a file or directory that would be replaced, although OpenCLT did not write it."""
    return ConfigError(
        f"{path} would be replaced, but OpenCLT did not write it for this purpose; move it, or give another output "
        "directory."
    )
