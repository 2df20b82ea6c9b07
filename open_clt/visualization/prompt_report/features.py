"""The features of a report: their records from files or from a small pass over texts, and as values of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config import FeatureRecordsConfig
from open_clt.errors import ConfigError
from open_clt.features.collecting.collect import FeatureCollection
from open_clt.features.collecting.measured import feature_records
from open_clt.features.collecting.outputs import TokenNames, outputs_of
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.firing import encode_contexts
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.labels import token_label

_EXAMPLES, _EFFECTS = 5, 8
_BATCH = 16
_BEFORE, _AFTER = 20, 11
"""Tokens of an example that a page shows before and after the peak."""


def records_on(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    chosen: Sequence[Feature],
) -> list[FeatureRecord]:
    """Measure the chosen features in one pass over contexts, and label them."""
    config = FeatureRecordsConfig(context_length=contexts.shape[1])
    collection = FeatureCollection(transcoder, contexts.shape[1], config)
    for start in range(0, len(contexts), _BATCH):
        batch = contexts[start : start + _BATCH].to(model.device)
        collection.add(batch, encode_contexts(model, transcoder, batch), start)
    records = feature_records(model, transcoder, collection, chosen, n_tokens=_EFFECTS)
    return list(label_records(records, background_of(model, transcoder, contexts)))


def records_without_text(
    model: LanguageModel, transcoder: Transcoder, chosen: Sequence[Feature]
) -> list[FeatureRecord]:
    """Describe the chosen features by the output tokens that their decoders raise and lower."""
    names = TokenNames(model)
    outputs = (outputs_of(model, transcoder, names, [feature], _EFFECTS)[0] for feature in chosen)
    return [
        FeatureRecord(feature, math.nan, math.nan, (), written.top_tokens, written.bottom_tokens)
        for feature, written in zip(chosen, outputs, strict=True)
    ]


def record_data(record: FeatureRecord, *, per_group: int = 2) -> dict[str, Any]:
    """Return what ``assets/panel.js`` shows of a feature; what is not known is left out.

    Of each group of examples, ``per_group`` are kept.
    """
    numbers = {"density": record.density, "max": record.max_activation}
    data: dict[str, Any] = {name: _short(value) for name, value in numbers.items() if not math.isnan(value)}
    data |= {"top": _effect_pairs(record.top_tokens), "bottom": _effect_pairs(record.bottom_tokens)}
    data["examples"] = [_example_data(example) for example in record.examples[:_EXAMPLES]]
    if record.groups:
        data["quantiles"] = [
            {"name": group.name, "examples": [_example_data(example) for example in group.examples[:per_group]]}
            for group in record.groups
        ]
    if record.histogram:
        ends = {"least": _short(record.min_activation), "largest": _short(record.max_activation)}
        data["histogram"] = {**ends, "counts": list(record.histogram)}
    if record.quantile_values:
        data["percentiles"] = [_short(value) for value in record.quantile_values]
    if record.fires_on:
        data["firesOn"] = [[token_label(each.token, 20), _short(each.share)] for each in record.fires_on[:_EFFECTS]]
    for name, related in (("nearest", record.nearest), ("coactive", record.coactive)):
        if related:
            data[name] = [[str(other.feature), _short(other.similarity)] for other in related[:_EFFECTS]]
    return data


def _effect_pairs(effects: Sequence[TokenEffect]) -> list[list[Any]]:
    return [
        [token_label(effect.token, 20), None if math.isnan(effect.effect) else _short(effect.effect)]
        for effect in effects[:_EFFECTS]
    ]


def _example_data(example: FeatureExample) -> dict[str, Any]:
    start = max(0, example.peak - _BEFORE)
    window = slice(start, example.peak + _AFTER + 1)
    return {
        "tokens": list(example.tokens[window]),
        "activations": [_short(value) for value in example.activations[window].tolist()],
        "peak": example.peak - start,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def check_fits_files(directory: str | Path) -> None:
    """Raise ConfigError or CheckpointError if a directory does not hold feature files that can be read."""
    files.check_readable(Path(directory))
    if not Path(directory).is_dir():
        raise ConfigError(f"There is no directory {directory}; give the one in which `features/` was written.")
    FeatureFiles(directory)
