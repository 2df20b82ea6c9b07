"""Own files: the files of a directory that belong to the transcoder in it, which are those that its reader opens.

A directory may hold other files, such as checkpoints or notes. No layout lists its files; the function that reads the
layout asks for each of them, and ``_Recorded`` remembers what it asked for.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.hub.repository import HubName
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.load import Opened, layout_of, unknown
from open_clt.transcoders.formats.weight_files import LocalFiles, OpenedFiles, WeightFiles
from open_clt.transcoders.make import NO_CODE, OwnCode


@final
@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """A transcoder that is opened, and the files that belong to it."""

    opened: Opened
    paths: Mapping[str, Path]
    """Path of each file by its name, which is relative to the directory; sorted by name. A file that several
    transcoders share may lie in the folder above the directory."""

    __repr__ = short_repr


@final
@dataclass(frozen=True)
class _Recorded(WeightFiles):
    """Files of a directory that remember which of them were asked for."""

    local: LocalFiles
    paths: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def place(self) -> Path:
        return self.local.place

    @property
    def opened(self) -> OpenedFiles:
        return self.local.opened

    def has(self, name: str) -> bool:
        return self.local.has(name)

    def names(self, pattern: str) -> list[str]:
        return self.local.names(pattern)

    def path(self, name: str) -> Path:
        self.paths[name] = self.local.saved(name)
        return self.local.path(name)

    def above(self, name: str) -> Path | None:
        if (path := self.local.above(name)) is not None:
            self.paths[name] = path  # readers find the file in the folder of the transcoder, too
        return path

    def tensors(self, name: str, *, ignored: Container[str] = ()) -> Mapping[str, StoredTensor]:
        self.paths[name] = self.local.saved(name)
        return self.local.tensors(name, ignored=ignored)

    def on_hub(self, name: HubName) -> WeightFiles:
        return self.local.on_hub(name)

    __repr__ = short_repr


def own_files(directory: str | Path, *, code: OwnCode = NO_CODE) -> OwnFiles:
    """Open the transcoder of a directory, and list the files that belong to it; no weight is read.

    Raises CheckpointError if the directory holds no transcoder of a known layout, or if its files are damaged.
    """
    path = files.existing_path(str(directory))
    if path is None or not path.is_dir():
        raise CheckpointError(f"{directory} is not a directory that holds a transcoder of a known layout; check it.")
    layout = layout_of(path)
    if layout is None:
        raise files.read_saved(path, "config.json", lambda saved: unknown(LocalFiles(saved)))

    def read(saved: files.Saved) -> OwnFiles:
        recorded = _Recorded(LocalFiles(saved))
        opened = layout.opened(recorded, code)
        present = {name: path for name, path in sorted(recorded.paths.items()) if path.exists()}  # some are optional
        return OwnFiles(opened=opened, paths=present)

    return files.read_saved(path, layout.head, read)
