"""Feature examples as circuit-tracer's viewer reads them.

A repository on Hugging Face holds ``features/index.json.gz``, one ``{filename, offsets}`` per layer; the bytes
``offsets[f]`` to ``offsets[f + 1]`` of that file are feature ``f``: four bytes of length (little-endian), zlib JSON.
A viewer whose ``scan`` is ``./directory`` reads ``{number}.json`` there instead, ``number`` as in ``cantor_pair``.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.formats.circuit_tracer_schema import cantor_pair, read_object
from open_clt.transcoders.feature import Feature

FOLDER = "features"
INDEX = "index.json.gz"
_LENGTH = struct.Struct("<I")


class _Layer(NamedTuple):
    filename: str
    offsets: list[int]


@final
class FeatureFiles:
    """The features of a directory that ``write_feature_files`` wrote; CheckpointError if it holds none."""

    def __init__(self, directory: str | Path) -> None:
        self.folder = Path(directory) / FOLDER
        self._place = files.saved(self.folder, INDEX)
        index = files.read_json(self._place(INDEX))
        try:
            self._layers = [_Layer(layer["filename"], layer["offsets"]) for layer in index]
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{self.folder / INDEX} does not list layers of features ({error!r}).") from error

    def record(self, feature: Feature) -> FeatureRecord | None:
        """One feature, or None if nothing was written of it; raises CheckpointError if its bytes are damaged."""
        try:
            if min(feature) < 0:
                raise IndexError(feature)
            filename, offsets = self._layers[feature.layer]
            start, end = offsets[feature.index], offsets[feature.index + 1]
        except IndexError as error:
            raise ConfigError(f"{self.folder} has no feature {feature}; layers and features count from 0.") from error
        if start == end:
            return None
        try:
            with self._place(filename).open("rb") as file:
                file.seek(start)
                stored = file.read(end - start)
            (length,) = _LENGTH.unpack_from(stored)
            content = zlib.decompress(stored[_LENGTH.size : _LENGTH.size + length])
            return _record(files.parse_json(content), feature)
        except FileNotFoundError as error:
            raise files.missing(self.folder / filename) from error
        except (OSError, struct.error, zlib.error, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"Feature {feature} is damaged in {filename}; write it again.") from error


def write_feature_files(
    records: Iterable[FeatureRecord], directory: str | Path, *, n_layers: int, n_features: int, name: str = ""
) -> Path:
    """Write records into ``directory/features`` and return that folder; ``name`` says which transcoder they are of.

    Features without a record take no room. Raises ConfigError if one lies outside the given shape.
    """
    entries: dict[Feature, bytes] = {}
    for record in records:
        if not (0 <= record.feature.layer < n_layers and 0 <= record.feature.index < n_features):
            raise ConfigError(
                f"Feature {record.feature} lies outside {n_layers} layers of {n_features} features; "
                "give the transcoder's shape."
            )
        packed = zlib.compress(_dumped(_entry(record, name)))
        entries[record.feature] = _LENGTH.pack(len(packed)) + packed
    folder = Path(directory) / FOLDER
    index: list[dict[str, Any]] = []
    with files.saving(folder, replaces=("layer_*.bin",)) as stage:
        for layer in range(n_layers):
            parts = [entries.get(Feature(layer, index), b"") for index in range(n_features)]
            files.write_bytes(stage(f"layer_{layer}.bin"), b"".join(parts))
            index.append({"filename": f"layer_{layer}.bin", "offsets": [0, *accumulate(map(len, parts))]})
        # No time stamp: the same features are the same bytes.
        files.write_bytes(stage(INDEX), gzip.compress(_dumped(index), mtime=0))
    return folder


def write_feature_json(records: Iterable[FeatureRecord], directory: str | Path, *, name: str = "") -> Path:
    """Write one ``{number}.json`` per record, for a viewer whose ``scan`` is this directory; return the directory."""
    directory = Path(directory)
    with files.saving(directory) as stage:
        for record in records:
            path = stage(f"{cantor_pair(record.feature)}.json")
            files.write_bytes(path, _dumped(_entry(record, name)))
    return directory


def read_feature_json(directory: str | Path, feature: Feature) -> FeatureRecord:
    """Read what ``write_feature_json`` wrote of one feature; raises CheckpointError if it is missing or damaged."""
    path = Path(directory) / f"{cantor_pair(feature)}.json"
    content = read_object(path, "examples_quantiles")
    try:
        return _record(content, feature)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole feature ({error!r}); write it again.") from error


def _entry(record: FeatureRecord, name: str) -> dict[str, Any]:
    """One feature in the viewer's words; what a record does not know stays empty."""
    examples = [
        {
            "tokens": list(example.tokens),
            "tokens_acts_list": [_short(value) for value in example.activations.tolist()],
            "train_token_ind": example.peak,
            "is_repeated_datapoint": False,
        }
        for example in record.examples
    ]
    return {
        "transcoder_id": name,
        "index": record.feature.index,
        "examples_quantiles": [{"quantile_name": "Top activations", "examples": examples}],
        "top_logits": [effect.token for effect in record.top_tokens],
        "bottom_logits": [effect.token for effect in record.bottom_tokens],
        # The viewers show tokens without numbers; these two are ours, and others pass over them.
        "top_logit_effects": [effect.effect for effect in record.top_tokens],
        "bottom_logit_effects": [effect.effect for effect in record.bottom_tokens],
        "act_min": 0.0,
        "act_max": record.max_activation,
        "quantile_values": [],
        "histogram": [],
        "activation_frequency": record.density,
    }


def _record(entry: Mapping[str, Any], feature: Feature) -> FeatureRecord:
    examples = [example for quantile in entry["examples_quantiles"] for example in quantile["examples"]]
    return FeatureRecord(
        feature=feature,
        density=float(entry.get("activation_frequency", math.nan)),
        max_activation=float(entry.get("act_max", math.nan)),
        examples=tuple(
            FeatureExample(
                tuple(example["tokens"]),
                torch.tensor(example["tokens_acts_list"], dtype=torch.float32),
                int(example["train_token_ind"]),
            )
            for example in examples
        ),
        top_tokens=_effects(entry, "top"),
        bottom_tokens=_effects(entry, "bottom"),
    )


def _effects(entry: Mapping[str, Any], side: str) -> tuple[TokenEffect, ...]:
    tokens = cast(Sequence[str], entry.get(f"{side}_logits", []))
    # Other programs write tokens without their effects.
    effects = cast(Sequence[float], entry.get(f"{side}_logit_effects", [math.nan] * len(tokens)))
    return tuple(TokenEffect(token, effect) for token, effect in zip(tokens, effects, strict=True))


def _short(value: float) -> float:
    """The nearest number of nine digits: enough to give a float32 back exactly."""
    return float(f"{value:.9g}")


def _dumped(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
