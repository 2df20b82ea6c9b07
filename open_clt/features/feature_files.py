"""Feature files: examples of features in the formats that circuit-tracer's viewer reads.

A repository on Hugging Face holds ``features/index.json.gz``, a list with one ``{filename, offsets}`` per layer. The
bytes ``offsets[f]`` to ``offsets[f + 1]`` of a layer's file describe feature ``f``: a length in four bytes
(little-endian), followed by JSON that is compressed with zlib.

A viewer whose ``scan`` is ``./directory`` reads ``./directory/{number}.json`` instead, where ``cantor_pair`` gives the
number of a feature.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch

from open_clt import files
from open_clt.config.json import check_record
from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.formats.circuit_tracer_schema import cantor_pair, read_object
from open_clt.transcoders.feature import Feature

FOLDER = "features"
INDEX = "index.json.gz"
_TOP_EFFECTS = "top_logit_effects"
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
        return files.read_saved(self.folder, INDEX, lambda saved: self._read(saved, feature))

    def _read_index(self, saved: files.Saved) -> None:
        """Read the index, unless it is the one that was read before."""
        path = saved(INDEX)
        packed = files.read_bytes(path, "gzip")
        if packed == self._index:
            return
        try:
            index = files.parse_json(files.unpacked(packed, "gzip", path, files.LARGEST_JSON))
        except ValueError as error:
            raise files.unreadable(path, "JSON", error) from error
        if not isinstance(index, list):
            raise _not_layers(self.folder)
        self._layers = [_layer(entry, self.folder) for entry in cast(list[Any], index)]
        self._index = packed

    def _read(self, saved: files.Saved, feature: Feature) -> FeatureRecord | None:
        self._read_index(saved)
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
            return _record(files.parse_json(content, finite=True), feature)
        except FileNotFoundError as error:
            raise files.missing(path) from error
        except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"Feature {feature} in {path} is damaged; write the features again.") from error


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


def write_feature_files(
    records: Iterable[FeatureRecord], directory: str | Path, *, n_layers: int, n_features: int, name: str = ""
) -> Path:
    """Write records into ``directory/features`` and return that folder; ``name`` names their transcoder.

    Features without a record do not take space. Former feature files are replaced, and the folder's manifest lists the
    new ones. Raises ConfigError if a feature lies outside the given shape, or if a file would be replaced that the
    manifest does not list.
    """
    entries: dict[Feature, bytes] = {}
    for record in records:
        if not (0 <= record.feature.layer < n_layers and 0 <= record.feature.index < n_features):
            raise ConfigError(
                f"Feature {record.feature} lies outside {n_layers} layers of {n_features} features; "
                "give the n_layers and n_features of its transcoder."
            )
        packed = zlib.compress(_content(record, name))
        entries[record.feature] = _LENGTH.pack(len(packed)) + packed
    folder = Path(directory) / FOLDER
    index: list[dict[str, Any]] = []
    layers = [f"layer_{layer}.bin" for layer in range(n_layers)]
    with files.results(folder, [*layers, INDEX]):
        former = files.listed_names(folder)
        files.list_names(folder, [*layers, INDEX])
        with files.saving(folder, replaces=former) as stage:
            for layer, filename in enumerate(layers):
                parts = [entries.get(Feature(layer, index), b"") for index in range(n_features)]
                files.write_bytes(stage(filename), b"".join(parts))
                index.append({"filename": filename, "offsets": [0, *accumulate(map(len, parts))]})
            # Without a time stamp, the same records always give the same bytes.
            files.write_bytes(stage(INDEX), gzip.compress(files.json_text(index, INDEX, indent=None).encode(), mtime=0))
    return folder


def write_feature_json(records: Iterable[FeatureRecord], directory: str | Path, *, name: str = "") -> Path:
    """Write one ``{number}.json`` per record and return the directory, which a viewer's ``scan`` can name.

    Former files that OpenCLT wrote are replaced; raises ConfigError if another program wrote a file of such a name.
    """
    directory = Path(directory)
    with files.saving(directory) as stage:
        for record in records:
            filename = f"{cantor_pair(record.feature)}.json"
            _check_place(directory / filename)
            files.write_bytes(stage(filename), _content(record, name))
    return directory


def _check_place(path: Path) -> None:
    """Raise ConfigError if a path holds anything but the JSON of a feature that OpenCLT wrote."""
    if os.path.lexists(path):
        try:
            read_object(path, "examples_quantiles", _TOP_EFFECTS)
        except CheckpointError as error:
            raise files.foreign(path) from error


def read_feature_json(directory: str | Path, feature: Feature) -> FeatureRecord:
    """Read a record that ``write_feature_json`` wrote; raises CheckpointError if its file is missing or damaged."""
    path = Path(directory) / f"{cantor_pair(feature)}.json"
    content = read_object(path, "examples_quantiles")
    try:
        return _record(content, feature)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not describe a whole feature ({error!r}); write it again.") from error


def _entry(record: FeatureRecord, name: str) -> dict[str, Any]:
    """The viewer's JSON for one feature; keys for which a record has no data are empty, and numbers are left out."""
    examples = [
        {
            "tokens": list(example.tokens),
            "tokens_acts_list": [_short(value) for value in example.activations.tolist()],
            "train_token_ind": example.peak,
            "is_repeated_datapoint": False,
        }
        for example in record.examples
    ]
    numbers = {"act_max": _number(record.max_activation), "activation_frequency": _number(record.density)}
    return {
        "transcoder_id": name,
        "index": record.feature.index,
        "examples_quantiles": [{"quantile_name": "Top activations", "examples": examples}],
        "top_logits": [effect.token for effect in record.top_tokens],
        "bottom_logits": [effect.token for effect in record.bottom_tokens],
        # Only OpenCLT reads the effects. Other programs ignore these two keys and show the tokens alone.
        _TOP_EFFECTS: [_number(effect.effect) for effect in record.top_tokens],
        "bottom_logit_effects": [_number(effect.effect) for effect in record.bottom_tokens],
        "act_min": 0.0,
        "quantile_values": [],
        "histogram": [],
        **{key: value for key, value in numbers.items() if value is not None},
    }


def _number(value: float) -> float | None:
    """A number as JSON holds it: None if it is NaN, which says that it is not known."""
    return None if math.isnan(value) else float(value)


def _record(entry: Mapping[str, Any], feature: Feature) -> FeatureRecord:
    """The record that the viewer's JSON describes; what the file lacks is NaN."""
    record = FeatureRecord(
        feature=feature,
        density=float(entry.get("activation_frequency", math.nan)),
        max_activation=float(entry.get("act_max", math.nan)),
        examples=tuple(_example(example) for part in entry["examples_quantiles"] for example in part["examples"]),
        top_tokens=_effects(entry, "top"),
        bottom_tokens=_effects(entry, "bottom"),
    )
    check_record(record)
    return record


def _example(entry: Mapping[str, Any]) -> FeatureExample:
    """An example; raises ValueError if its tokens, activations and peak do not fit together."""
    tokens, peak = tuple(entry["tokens"]), int(entry["train_token_ind"])
    activations = torch.tensor(entry["tokens_acts_list"], dtype=torch.float32)
    if activations.shape != (len(tokens),) or not bool(activations.isfinite().all()) or not 0 <= peak < len(tokens):
        raise ValueError(f"an example of {len(tokens)} tokens has other activations, or its peak is {peak}")
    return FeatureExample(tokens, activations, peak)


def _effects(entry: Mapping[str, Any], side: str) -> tuple[TokenEffect, ...]:
    """The tokens of one side, top or bottom, with their effects; NaN where the file has no effects."""
    tokens = cast(Sequence[str], entry.get(f"{side}_logits", []))
    # Other programs write tokens without their effects.
    effects = cast(Sequence[float | None], entry.get(f"{side}_logit_effects", [None] * len(tokens)))
    pairs = zip(tokens, effects, strict=True)
    return tuple(TokenEffect(token, math.nan if effect is None else effect) for token, effect in pairs)


def _short(value: float) -> float:
    """The value rounded to nine digits, which are enough to restore a float32 exactly."""
    return float(f"{value:.9g}")


def _content(record: FeatureRecord, name: str) -> bytes:
    """The viewer's JSON for one feature, in UTF-8; raises CheckpointError for a record that cannot be read back."""
    subject = f"The record of feature {record.feature}"
    try:
        entry = _entry(record, name)
        _record(entry, record.feature)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{subject} cannot be written ({error}); measure the feature again.") from error
    # Half a character (a lone surrogate) is written as its number.
    return files.json_text(entry, subject, strict=True, indent=None).encode(errors="backslashreplace")
