"""Feature files: records of features in the formats that circuit-tracer's viewer reads.

A repository on Hugging Face holds ``features/index.json.gz``, a list with one ``{filename, offsets}`` per layer. The
bytes ``offsets[f]`` to ``offsets[f + 1]`` of a layer's file describe feature ``f``: a length in four bytes
(little-endian), followed by JSON that is compressed with zlib (``feature_json.py``). Beside them, OpenCLT writes
``about.json``, which says how the records were measured, and ``table.json.gz``, one row per record for lists.

A viewer whose ``scan`` is ``./directory`` reads ``./directory/{number}.json`` instead, where ``cantor_pair`` gives the
number of a feature.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast, final

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.about import ABOUT, AboutRecords, read_about, write_about
from open_clt.features.feature_json import TOP_EFFECTS, json_of, record_of
from open_clt.features.records import FeatureRecord
from open_clt.features.table import TABLE, FeatureRow, read_columns, row_of, to_columns
from open_clt.graphs.formats.circuit_tracer_schema import cantor_pair, read_object
from open_clt.transcoders.feature import Feature

FOLDER = "features"
INDEX = "index.json.gz"
_LENGTH = struct.Struct("<I")


class _Layer(NamedTuple):
    """An entry of the index: the file of one layer, and the offsets of its features."""

    filename: str
    offsets: list[int]


@final
class FeatureFiles:
    """Reader of a directory that ``write_feature_files`` wrote; raises CheckpointError if its index cannot be read."""

    def __init__(self, directory: str | Path) -> None:
        self.folder = Path(directory) / FOLDER
        self._index = b""
        self._layers: list[_Layer] = []
        files.read_saved(self.folder, INDEX, self._read_index)

    def record(self, feature: Feature) -> FeatureRecord | None:
        """The record of a feature, or None if it has no record; files that were written again are read anew.

        Raises ConfigError if the feature lies outside the files, CheckpointError if its bytes are damaged.
        """
        return next(iter(self.records([feature])), None)

    def records(self, chosen: Iterable[Feature]) -> list[FeatureRecord]:
        """The records of those of the chosen features that have one, all of one save; has the errors of ``record``."""
        chosen = list(chosen)

        def read(saved: files.Saved) -> list[FeatureRecord]:
            self._read_index(saved)
            return [record for feature in chosen if (record := self._read(saved, feature)) is not None]

        return files.read_saved(self.folder, INDEX, read)

    def about(self) -> AboutRecords | None:
        """How the records were measured; None if another program wrote the files. Raises CheckpointError if damaged."""
        return files.read_saved(self.folder, INDEX, lambda saved: read_about(saved(ABOUT)))

    def table(self) -> list[FeatureRow]:
        """One row for each record, by layer and index; raises CheckpointError if the table is missing or damaged."""

        def read(saved: files.Saved) -> list[FeatureRow]:
            path = saved(TABLE)
            try:
                return read_columns(_unzipped(files.read_bytes(path, "gzip"), path))
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
                raise CheckpointError(f"{path} is not a table of features; write the features again.") from error

        return files.read_saved(self.folder, INDEX, read)

    def features(self) -> list[Feature]:
        """All features that have a record, by layer and index."""
        files.read_saved(self.folder, INDEX, self._read_index)
        return [
            Feature(layer, index)
            for layer, entry in enumerate(self._layers)
            for index, (start, end) in enumerate(pairwise(entry.offsets))
            if start < end
        ]

    def paths(self) -> list[Path]:
        """The files that hold the records, and those about them that are present."""
        files.read_saved(self.folder, INDEX, self._read_index)
        names = [*(entry.filename for entry in self._layers), ABOUT, TABLE, INDEX]
        return [self.folder / name for name in dict.fromkeys(names) if (self.folder / name).exists()]

    def _read_index(self, saved: files.Saved) -> None:
        """Read the index, unless it is the one that was read before."""
        path = saved(INDEX)
        packed = files.read_bytes(path, "gzip")
        if packed == self._index:
            return
        index = _unzipped(packed, path)
        if not isinstance(index, list):
            raise _not_layers(self.folder)
        self._layers = [_layer(entry, self.folder) for entry in cast(list[Any], index)]
        self._index = packed

    def _read(self, saved: files.Saved, feature: Feature) -> FeatureRecord | None:
        """The record of a feature, from the files of the index that was read last."""
        try:
            if min(feature) < 0:
                raise IndexError(feature)
            filename, offsets = self._layers[feature.layer]
            start, end = offsets[feature.index], offsets[feature.index + 1]
        except IndexError as error:
            raise ConfigError(
                f"{self.folder} does not have feature {feature}; layers and features are counted from 0."
            ) from error
        if start == end:
            return None
        path = self.folder / filename
        try:
            with files.opened(saved(filename), unpack=False) as file:
                file.seek(start)
                stored = file.read(max(0, min(end - start, files.LARGEST_FEATURE)))
            (length,) = _LENGTH.unpack_from(stored)
            packed = stored[_LENGTH.size : _LENGTH.size + length]
            content = files.unpacked(packed, "zlib", f"Feature {feature} in {path}", files.LARGEST_FEATURE)
            return record_of(files.parse_json(content, finite=True), feature)
        except FileNotFoundError as error:
            raise files.missing(path) from error
        except PermissionError as error:
            raise files.unreadable(path, "feature", error) from error
        except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"Feature {feature} in {path} is damaged; write the features again.") from error


def _unzipped(packed: bytes, path: Path) -> Any:
    """The JSON of a compressed file."""
    try:
        return files.parse_json(files.unpacked(packed, "gzip", path, files.LARGEST_JSON), finite=True)
    except ValueError as error:
        raise files.unreadable(path, "JSON", error) from error


def _layer(entry: object, folder: Path) -> _Layer:
    """Read an entry of the index of a folder; raises CheckpointError if it is damaged or names a file elsewhere."""
    match entry:
        case {"filename": str(filename), "offsets": list(offsets)}:
            offsets = cast(list[Any], offsets)
        case _:
            raise _not_layers(folder)
    if not all(type(offset) is int for offset in offsets) or offsets != sorted(offsets) or min(offsets, default=0) < 0:
        raise _not_layers(folder)
    files.inside(folder, filename)
    return _Layer(filename, offsets)


def _not_layers(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder / INDEX} is not a list of layers, each with a filename and rising offsets; write the features again."
    )


def check_feature_files(directory: str | Path) -> None:
    """Raise ConfigError if ``write_feature_files`` would replace a file of another program."""
    folder = Path(directory) / FOLDER
    files.check_directory(folder)
    present = [path.name for path in folder.glob("layer_*.bin")] if folder.is_dir() else []
    files.check_results(folder, [*present, TABLE, ABOUT, INDEX])


def write_feature_files(
    records: Iterable[FeatureRecord],
    directory: str | Path,
    *,
    n_layers: int,
    n_features: int,
    about: AboutRecords | None = None,
    name: str = "",
) -> Path:
    """Write records into ``directory/features`` and return that folder; ``name`` names their transcoder.

    An iterator must yield the records by layer, and by index within a layer; memory then holds the records of one
    feature at a time. Features without a record do not take space. Former feature files are replaced, and the folder's
    manifest lists the new ones. Raises ConfigError if a feature lies outside the given shape or is out of order, or if
    a file would be replaced that the manifest does not list.
    """
    if isinstance(records, Sequence):
        records = sorted(records, key=lambda record: record.feature)
    folder = Path(directory) / FOLDER
    layers = [f"layer_{layer}.bin" for layer in range(n_layers)]
    names = [*layers, TABLE, *([] if about is None else [ABOUT]), INDEX]
    with files.results(folder, names):
        former = files.listed_names(folder)
        with files.saving(folder, replaces=former) as stage:
            writer = _Writer(records, n_layers, n_features, name)
            for layer, filename in enumerate(layers):
                files.write_parts(stage(filename), writer.layer(layer))
            writer.check_end()
            files.write_bytes(stage(TABLE), _zipped(to_columns(writer.rows), TABLE))
            if about is not None:
                write_about(stage(ABOUT), about)
            files.list_names(folder, names)
            files.write_bytes(stage(INDEX), _zipped(writer.index(layers), INDEX))
    return folder


@final
class _Writer:
    """Turns records into the bytes of layers' files, and keeps what the index and the table say about them."""

    def __init__(self, records: Iterable[FeatureRecord], n_layers: int, n_features: int, name: str) -> None:
        self.rows: list[FeatureRow] = []
        self._records = iter(records)
        self._next = next(self._records, None)
        self._lengths = [[0] * n_features for _ in range(n_layers)]
        self._name = name

    def layer(self, layer: int) -> Iterator[bytes]:
        """Yield the bytes of each feature of a layer."""
        while self._next is not None and self._next.feature.layer <= layer:
            self._check(self._next.feature)
            packed = zlib.compress(json_of(self._next, self._name))
            self._lengths[layer][self._next.feature.index] = _LENGTH.size + len(packed)
            self.rows.append(row_of(self._next))
            yield _LENGTH.pack(len(packed)) + packed
            self._next = next(self._records, None)

    def check_end(self) -> None:
        """Raise ConfigError if a record is left, which lies outside all layers."""
        if self._next is not None:
            self._check(self._next.feature)

    def index(self, filenames: Sequence[str]) -> list[dict[str, Any]]:
        """The index of the layers' files."""
        lengths = zip(filenames, self._lengths, strict=True)
        return [{"filename": filename, "offsets": [0, *accumulate(layer)]} for filename, layer in lengths]

    def _check(self, feature: Feature) -> None:
        n_layers, n_features = len(self._lengths), len(self._lengths[0]) if self._lengths else 0
        if not (0 <= feature.layer < n_layers and 0 <= feature.index < n_features):
            raise ConfigError(
                f"Feature {feature} lies outside {n_layers} layers of {n_features} features; "
                "give the n_layers and n_features of its transcoder."
            )
        if self.rows and feature <= self.rows[-1].feature:
            raise ConfigError(
                f"The record of feature {feature} comes after that of {self.rows[-1].feature}; give one record of each "
                "feature, by layer and by index."
            )


def _zipped(content: object, name: str) -> bytes:
    """JSON that is compressed without a time stamp, so that the same records always give the same bytes."""
    return gzip.compress(files.json_text(content, name, indent=None).encode(errors="backslashreplace"), mtime=0)


def write_feature_json(records: Iterable[FeatureRecord], directory: str | Path, *, name: str = "") -> Path:
    """Write one ``{number}.json`` per record and return the directory, which a viewer's ``scan`` can name.

    Former files that OpenCLT wrote are replaced; raises ConfigError if another program wrote a file of such a name.
    """
    directory = Path(directory)
    with files.saving(directory) as stage:
        for record in records:
            filename = f"{cantor_pair(record.feature)}.json"
            _check_place(directory / filename)
            files.write_bytes(stage(filename), json_of(record, name))
    return directory


def _check_place(path: Path) -> None:
    """Raise ConfigError if a path holds anything but the JSON of a feature that OpenCLT wrote."""
    if os.path.lexists(path):
        try:
            read_object(path, "examples_quantiles", TOP_EFFECTS)
        except CheckpointError as error:
            raise files.foreign(path) from error


def read_feature_json(directory: str | Path, feature: Feature) -> FeatureRecord:
    """Read a record that ``write_feature_json`` wrote; raises CheckpointError if its file is missing or damaged."""
    path = Path(directory) / f"{cantor_pair(feature)}.json"
    content = read_object(path, "examples_quantiles")
    try:
        return record_of(content, feature)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not describe a whole feature ({error!r}); write it again.") from error
