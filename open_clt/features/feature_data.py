"""The values of a feature that pages draw: one form for reports, dashboards and the explorer (``assets/feature.js``).

What is not known of a feature is null or empty. An example lists only the activations that are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from open_clt.features.records import (
    ExampleGroup,
    FeatureExample,
    FeatureLabel,
    FeatureRecord,
    LayerOutputs,
    RelatedFeature,
    TokenEffect,
)


def feature_data(record: FeatureRecord, vocabulary: dict[str, int] | None = None) -> dict[str, Any]:
    """Return everything that a record holds, as plain JSON.

    With a ``vocabulary``, examples hold the numbers of their tokens, and new tokens are added to it.
    """
    groups = [ExampleGroup("Largest activations", record.examples), *record.groups]
    return {
        "label": None if record.label is None else _label(record.label),
        "density": known(record.density),
        "max": known(record.max_activation),
        "min": known(record.min_activation) or 0.0,
        "histogram": record.histogram,
        "percentiles": [short(value) for value in record.quantile_values],
        "groups": [
            {"name": group.name, "examples": [_example(example, vocabulary) for example in group.examples]}
            for group in groups
        ],
        **_sides(record),
        "outputs": [{"layer": outputs.layer, **_sides(outputs)} for outputs in record.outputs],
        "firesOn": [[share.token, short(share.share)] for share in record.fires_on],
        "nearest": _related(record.nearest),
        "coactive": _related(record.coactive),
    }


def known(value: float) -> float | None:
    """Return a number in four digits; None for NaN."""
    return None if math.isnan(value) else short(value)


def short(value: float) -> float:
    """Return a number in four digits."""
    return float(f"{value:.4g}")


def _label(label: FeatureLabel) -> dict[str, Any]:
    numbers = {"confidence": known(label.confidence), "score": known(label.score)}
    return {"text": label.text, "automatic": label.automatic, **numbers}


def _example(example: FeatureExample, vocabulary: dict[str, int] | None) -> list[Any]:
    tokens: list[str | int] = list(example.tokens)
    if vocabulary is not None:
        tokens = [vocabulary.setdefault(token, len(vocabulary)) for token in example.tokens]
    values = enumerate(example.activations.tolist())
    active = [number for position, value in values if value != 0 for number in (position, short(value))]
    return [tokens, active, example.peak]


def _sides(outputs: FeatureRecord | LayerOutputs) -> dict[str, Any]:
    return {"top": _effects(outputs.top_tokens), "bottom": _effects(outputs.bottom_tokens)}


def _effects(effects: Sequence[TokenEffect]) -> list[list[Any]]:
    return [[effect.token, known(effect.effect)] for effect in effects]


def _related(related: Sequence[RelatedFeature]) -> list[list[Any]]:
    return [[str(other.feature), short(other.similarity)] for other in related]
