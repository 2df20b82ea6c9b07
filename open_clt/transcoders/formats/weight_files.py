"""Weight files: the files of a stored transcoder, which readers of layouts find by their names.

A reader of a layout does not know where the files are. It asks for the names, for the path of a small file such as a
config, and for the tensors of a file of weights, which are not read before they are used.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.hub.repository import HubName, Repository
from open_clt.short_repr import short_repr


@final
@dataclass(frozen=True)
class OpenedFiles:
    """The files of weights that a reader opened, by their paths or addresses."""

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    """Number of bytes of each file."""
    tensors: dict[str, Mapping[str, StoredTensor]] = field(default_factory=dict[str, Mapping[str, StoredTensor]])
    """All tensors of each file by their names, also those that no reader uses."""

    __repr__ = short_repr


class WeightFiles(ABC):
    """The files of a stored transcoder."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The directory or address of the files, for messages."""

    @property
    @abstractmethod
    def opened(self) -> OpenedFiles:
        """The files of weights that were opened; transcoders on the hub that these files name share it."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file with this name."""

    @abstractmethod
    def names(self, pattern: str) -> list[str]:
        """The names that match a pattern such as ``W_enc_*.safetensors`` or ``*/params.safetensors``, sorted."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The path of a small file."""

    @abstractmethod
    def above(self, name: str) -> Path | None:
        """The path of a small file in the folder above, which several transcoders share; None if it does not exist."""

    @abstractmethod
    def tensors(self, name: str, *, ignored: Container[str] = ()) -> Mapping[str, StoredTensor]:
        """The tensors of a safetensors file, or the arrays of an npz file, by their names; none is read yet.

        ``ignored`` are the names of tensors that are not weights, such as counts, and are left out.
        """

    @abstractmethod
    def on_hub(self, name: HubName) -> WeightFiles:
        """The files of a repository on the hub that these files name.

        Raises the errors of ``Repository.find``.
        """


@final
@dataclass(frozen=True)
class LocalFiles(WeightFiles):
    """The files of a transcoder in a directory of this machine."""

    saved: files.Saved
    whole: bool = False
    """Whether files on the hub that these files name are downloaded as a whole."""
    record: OpenedFiles = field(default_factory=OpenedFiles)
    """What ``opened`` returns."""

    __repr__ = short_repr

    @property
    def place(self) -> Path:
        return self.saved.directory

    @property
    def opened(self) -> OpenedFiles:
        return self.record

    def has(self, name: str) -> bool:
        return self.saved(name).exists()

    def names(self, pattern: str) -> list[str]:
        return self.saved.names(pattern)

    def path(self, name: str) -> Path:
        return self.saved(name)

    def above(self, name: str) -> Path | None:
        path = self.saved.directory.resolve().parent / name
        return path if path.is_file() else None

    def tensors(self, name: str, *, ignored: Container[str] = ()) -> Mapping[str, StoredTensor]:
        tensors = _open_local(path := self.saved(name))
        try:
            self.record.sizes[str(path)] = path.stat().st_size
        except FileNotFoundError as error:  # another process saves the transcoder meanwhile
            raise files.missing(path) from error
        self.record.tensors[str(path)] = tensors
        return _weights(tensors, ignored)

    def on_hub(self, name: HubName) -> WeightFiles:
        return HubFiles(Repository.find(name), self.whole, self.record)


@final
@dataclass(frozen=True)
class HubFiles(WeightFiles):
    """The files of a transcoder on the Hugging Face hub; small ones are downloaded, and parts of large ones fetched."""

    repository: Repository
    whole: bool
    """Whether files of weights are downloaded as a whole, as suits a transcoder that is read into memory."""
    record: OpenedFiles = field(default_factory=OpenedFiles)
    """What ``opened`` returns."""

    @property
    def place(self) -> Path:
        return Path(str(self.repository.name))

    @property
    def opened(self) -> OpenedFiles:
        return self.record

    def has(self, name: str) -> bool:
        return name in self.repository.sizes

    def names(self, pattern: str) -> list[str]:
        return self.repository.names(pattern)

    def path(self, name: str) -> Path:
        if not self.has(name):
            raise files.missing(self.place / name)
        return self.repository.path(name)

    def above(self, name: str) -> Path | None:
        here = self.repository.name
        if not here.folder:
            return None
        parent = Repository.find(replace(here, folder=here.folder.rpartition("/")[0]))
        return parent.path(name) if name in parent.sizes else None

    def tensors(self, name: str, *, ignored: Container[str] = ()) -> Mapping[str, StoredTensor]:
        if not self.has(name):
            raise files.missing(self.place / name)
        address = self.place / name
        if self.whole or self.repository.is_downloaded(name):
            tensors = _open_local(self.repository.path(name))
        else:
            open_remote = files.open_remote_npz if name.endswith(".npz") else files.open_remote_tensors
            tensors = open_remote(self.repository.part(name), address)
        self.record.sizes[str(address)] = self.repository.sizes[name]
        self.record.tensors[str(address)] = tensors
        return _weights(tensors, ignored)

    def on_hub(self, name: HubName) -> WeightFiles:
        return HubFiles(Repository.find(name), self.whole, self.record)

    __repr__ = short_repr


@final
@dataclass(frozen=True)
class SelectedFiles(WeightFiles):
    """Those files of a transcoder that lie in folders which a pattern selects, such as one of several sets."""

    all_files: WeightFiles
    pattern: str
    """Pattern of the first folders of a name, such as ``layer_*_width_16k``; ``*`` does not match ``/``."""

    @property
    def place(self) -> Path:
        return self.all_files.place / self.pattern

    @property
    def opened(self) -> OpenedFiles:
        return self.all_files.opened

    def has(self, name: str) -> bool:
        return self._selects(name) and self.all_files.has(name)

    def names(self, pattern: str) -> list[str]:
        return [name for name in self.all_files.names(pattern) if self._selects(name)]

    def path(self, name: str) -> Path:
        return self.all_files.path(name)

    def above(self, name: str) -> Path | None:
        return self.all_files.above(name)

    def tensors(self, name: str, *, ignored: Container[str] = ()) -> Mapping[str, StoredTensor]:
        return self.all_files.tensors(name, ignored=ignored)

    def on_hub(self, name: HubName) -> WeightFiles:
        return self.all_files.on_hub(name)

    def _selects(self, name: str) -> bool:
        folders, patterns = name.split("/"), self.pattern.split("/")
        return len(folders) >= len(patterns) and all(map(fnmatchcase, folders, patterns))

    __repr__ = short_repr


def _open_local(path: Path) -> dict[str, StoredTensor]:
    return files.open_npz(path) if path.suffix == ".npz" else files.open_tensors(path)


def _weights(tensors: Mapping[str, StoredTensor], ignored: Container[str]) -> Mapping[str, StoredTensor]:
    weights = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    files.check_weight_types(weights)
    return weights


def names_of_layers(weight_files: WeightFiles, name: str) -> list[str]:
    """The names of the files of all layers, in order, where ``name`` has ``{}`` in place of the number of the layer.

    Other files with similar names, such as ``layer_1_copy.safetensors``, are left out. Raises CheckpointError if the
    file of a layer before the last one is missing, or all are.
    """
    numbered = re.compile(re.escape(name).replace(r"\{\}", "(0|[1-9][0-9]*)"))
    similar = weight_files.names(name.format("[0-9]*"))
    layers = {int(match[1]) for each in similar if (match := numbered.fullmatch(each))}
    for layer in range(max(1, len(layers))):
        if layer not in layers:
            raise files.missing(weight_files.place / name.format(layer))
    return [name.format(layer) for layer in range(len(layers))]


def check_known(tensors: Mapping[str, StoredTensor], known: Container[str], place: object) -> None:
    """Raise CheckpointError if a tensor is not one of those that a layout has; ``place`` holds the tensors."""
    if unknown := sorted(name for name in tensors if name not in known):
        raise CheckpointError(f"{place} holds the tensor {unknown[0]!r}, which this layout does not have.")


def tensor_of(
    tensors: Mapping[str, StoredTensor], name: str, shape: tuple[int | None, ...], place: Path
) -> StoredTensor:
    """The tensor with this name and shape, of which None may be any size.

    Raises CheckpointError if it is missing or has another shape; ``place`` holds the tensors.
    """
    if name not in tensors:
        raise CheckpointError(f"{place} lacks the tensor {name!r}.")
    found = tuple(tensors[name].shape)
    if len(found) != len(shape) or any(size not in (None, axis) for size, axis in zip(shape, found, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(f"{place} holds the tensor {name!r} with shape {found}; it must have shape ({expected}).")
    return tensors[name]
