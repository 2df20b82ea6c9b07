"""The features of a report: their records from files or from a small pass over texts, and as values of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.firing import activations_of
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.labels import token_label

_EXAMPLES, _EFFECTS = 5, 8
_BEFORE, _AFTER = 20, 11
"""Tokens of an example that a page shows before and after the peak."""


def records_from_files(directory: str | Path, chosen: Sequence[Feature]) -> list[FeatureRecord]:
    """Return the records that feature files hold of the chosen features; raises CheckpointError if they are damaged.

    Raises ConfigError if the files are those of a transcoder with fewer layers or features.
    """
    stored = FeatureFiles(directory)
    records = [stored.record(feature) for feature in chosen]
    return [record for record in records if record is not None]


def records_on(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"] | None,
    chosen: Sequence[Feature],
) -> list[FeatureRecord]:
    """Describe the chosen features by one pass over contexts; without contexts, by their effects on tokens alone."""
    records = _effects_alone(model, transcoder, chosen)
    if contexts is None or not records:
        return records
    contexts = contexts.to(model.device)
    columns = activations_of(model, transcoder, contexts, chosen)
    per_context = columns.unflatten(0, (len(contexts), -1))
    names = [tuple(model.token_strings(context)) for context in contexts]
    return [
        replace(
            record,
            density=float((column != 0).float().mean()),
            max_activation=float(column[column.abs().argmax()]),
            examples=_examples(names, per_context[:, :, index], transcoder.first_position),
        )
        for index, (record, column) in enumerate(zip(records, columns.unbind(1), strict=True))
    ]


def _effects_alone(model: LanguageModel, transcoder: Transcoder, chosen: Sequence[Feature]) -> list[FeatureRecord]:
    if not chosen:
        return []
    records: list[FeatureRecord] = []
    effects = model.unembedding.effects(decoder_directions(transcoder, chosen))
    for feature, effect in zip(chosen, effects, strict=True):
        top, bottom = (_largest(model, effect, sign) for sign in (1, -1))
        records.append(
            FeatureRecord(
                feature=feature,
                density=math.nan,
                max_activation=math.nan,
                examples=(),
                top_tokens=top,
                bottom_tokens=bottom,
            )
        )
    return records


def _largest(model: LanguageModel, effects: Float[Tensor, "vocab"], sign: int) -> tuple[TokenEffect, ...]:
    values, tokens = (sign * effects).topk(min(_EFFECTS, len(effects)))
    return tuple(map(TokenEffect, model.token_strings(tokens), (sign * values).tolist()))


def _examples(
    names: Sequence[tuple[str, ...]], activations: Float[Tensor, "context position"], first: int
) -> tuple[FeatureExample, ...]:
    """The contexts with the largest activations, strongest first; a context that begins alike is shown once."""
    peaks = activations.abs().amax(1)
    examples: list[FeatureExample] = []
    seen = set[tuple[str, ...]]()
    for context in peaks.argsort(descending=True, stable=True).tolist():
        if len(examples) == _EXAMPLES or not peaks[context]:
            break
        along = torch.nn.functional.pad(activations[context], (first, 0))
        peak = int(along.abs().argmax())
        if names[context][: peak + 1] not in seen:
            seen.add(names[context][: peak + 1])
            examples.append(FeatureExample(names[context], along, peak))
    return tuple(examples)


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
    if not Path(directory).is_dir():
        raise ConfigError(f"There is no directory {directory}; give the one in which `features/` was written.")
    FeatureFiles(directory)
