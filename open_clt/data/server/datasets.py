"""The datasets of a directory: which of its files a server shows, and under which names.

The directory is one dataset, or holds datasets as its folders. Only complete datasets have a name here, and only the
files that their manifest lists. A name never leads out of the directory, not even through a symbolic link.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, final

from open_clt import files
from open_clt.data.dataset.manifest import MANIFEST, DatasetManifest, read_manifest
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.data.server.refusal import Refusal
from open_clt.errors import CheckpointError, ConfigError
from open_clt.short_repr import short_repr

_SHOWN_NAME = 40
"""Largest number of characters of a wrong name in an answer."""


class Dataset(NamedTuple):
    """A complete dataset."""

    name: str
    directory: Path
    manifest: DatasetManifest
    manifest_sha256: str

    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file, by name."""
        shards = {shard.file: shard.sha256 for shard in self.manifest.shards}
        return {MANIFEST: self.manifest_sha256, STATISTICS: self.manifest.statistics_sha256, **shards}

    __repr__ = short_repr


class DatasetFile(NamedTuple):
    """A file of a dataset that may be sent."""

    path: Path
    status: os.stat_result
    sha256: str


@final
class Datasets:
    """The complete datasets of a directory, which are looked for when they are asked for."""

    def __init__(self, root: Path) -> None:
        """Raises ConfigError if the directory is missing, and CheckpointError if it may not be read."""
        if not root.is_dir():
            raise ConfigError(f"{root} is not a directory; give a dataset, or a directory that holds datasets.")
        files.check_readable(root)
        self.root = root.resolve()
        self.is_one = os.path.lexists(self.root / MANIFEST)
        self._read: dict[str, tuple[tuple[int, ...], Dataset]] = {}

    def names(self) -> list[str]:
        """The names of all datasets in alphabetical order."""
        if self.is_one:
            return [self.root.name or "dataset"]
        return sorted(path.name for path in self.root.iterdir() if self._is_dataset(path.name))

    def all(self) -> list[Dataset]:
        """All datasets, without those that are damaged."""
        found: list[Dataset] = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except Refusal:
                continue
        return found

    def get(self, name: str) -> Dataset:
        """The dataset of this name; refuses a name that no complete dataset has."""
        missing = Refusal(404, f"The server does not have a complete dataset {shown(name)!r}; GET /datasets lists all.")
        try:
            directory = self._directory(name)
            path = self.inside(directory / MANIFEST)
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._read.get(name)
            if known is None or known[0] != version:
                known = version, Dataset(name, directory, read_manifest(directory), files.file_sha256(path))
                self._read[name] = known
        except (CheckpointError, OSError, ValueError) as error:
            self._read.pop(name, None)
            raise missing from error
        return known[1]

    def file(self, name: str, file: str) -> DatasetFile:
        """A file of a dataset; refuses names that its manifest does not list, and files that are missing."""
        dataset = self.get(name)
        missing = Refusal(404, f"The dataset {shown(name)!r} does not have a file {shown(file)!r}.")
        digest = dataset.digests().get(file)
        if digest is None:
            raise missing
        try:
            path = self.inside(dataset.directory / file)
            files.check_regular(path)
            return DatasetFile(path, path.stat(), digest)
        except (CheckpointError, OSError, ValueError) as error:
            raise missing from error

    def _is_dataset(self, name: str) -> bool:
        try:
            return self.inside(self._directory(name) / MANIFEST).is_file()
        except (CheckpointError, OSError, ValueError):
            return False

    def _directory(self, name: str) -> Path:
        """The directory of a name; raises CheckpointError if the name leads elsewhere."""
        if self.is_one and [name] == self.names():
            return self.root
        if self.is_one or "/" in name or name.startswith("."):
            raise CheckpointError(f"{self.root} does not hold the dataset {shown(name)!r}.")
        return self.inside(files.inside(self.root, name))

    def inside(self, path: Path) -> Path:
        """The path itself; raises CheckpointError if a symbolic link leads it out of the directory."""
        if not Path(os.path.realpath(path)).is_relative_to(self.root):
            raise CheckpointError(f"{path} leads out of {self.root}.")
        return path


def shown(name: str) -> str:
    """A name as an answer shows it."""
    return name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}..."
