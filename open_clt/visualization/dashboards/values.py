"""The values that dashboards show: records of features as plain JSON, small enough for all features of a transcoder.

The tokens of examples are numbers of a vocabulary that the features of one file share, and an example lists only the
activations that are not zero. ``assets/dashboards.js`` reads these values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from open_clt.features.records import FeatureExample, FeatureRecord, LayerOutputs, RelatedFeature, TokenEffect
from open_clt.features.table import FeatureRow


def part_values(records: Sequence[FeatureRecord]) -> dict[str, Any]:
    """The values of the features of one file, by index of the feature, and the tokens of their examples."""
    vocabulary: dict[str, int] = {}
    features = {str(record.feature.index): _feature(record, vocabulary) for record in records}
    return {"tokens": list(vocabulary), "features": features}


def table_values(rows: Sequence[FeatureRow]) -> dict[str, list[Any]]:
    """The columns of the table of features."""
    return {
        "layer": [row.feature.layer for row in rows],
        "index": [row.feature.index for row in rows],
        "label": [row.label for row in rows],
        "automatic": [row.automatic for row in rows],
        "density": [_known(row.density) for row in rows],
        "max": [_known(row.max_activation) for row in rows],
        "firesOn": [row.fires_on for row in rows],
        "raises": [row.top_tokens for row in rows],
    }


def _feature(record: FeatureRecord, vocabulary: dict[str, int]) -> dict[str, Any]:
    groups = [("Largest activations", record.examples), *record.groups]
    label = record.label
    return {
        "label": None
        if label is None
        else {
            "text": label.text,
            "automatic": label.automatic,
            "confidence": _known(label.confidence),
            "score": _known(label.score),
        },
        "density": _known(record.density),
        "max": _known(record.max_activation),
        "min": _known(record.min_activation) or 0.0,
        "histogram": record.histogram,
        "quantiles": [_short(value) for value in record.quantile_values],
        "groups": [[name, [_example(example, vocabulary) for example in examples]] for name, examples in groups],
        **_sides(record),
        "outputs": [{"layer": outputs.layer, **_sides(outputs)} for outputs in record.outputs],
        "firesOn": [[share.token, _short(share.share)] for share in record.fires_on],
        "nearest": _related(record.nearest),
        "coactive": _related(record.coactive),
    }


def _example(example: FeatureExample, vocabulary: dict[str, int]) -> list[Any]:
    """The numbers of the tokens, each position that is active with its activation, and the position of the peak."""
    tokens = [vocabulary.setdefault(token, len(vocabulary)) for token in example.tokens]
    values = enumerate(example.activations.tolist())
    active = [number for position, value in values if value != 0 for number in (position, _short(value))]
    return [tokens, active, example.peak]


def _sides(outputs: FeatureRecord | LayerOutputs) -> dict[str, Any]:
    return {"top": _effects(outputs.top_tokens), "bottom": _effects(outputs.bottom_tokens)}


def _effects(effects: Sequence[TokenEffect]) -> list[list[Any]]:
    return [[effect.token, _known(effect.effect)] for effect in effects]


def _related(related: Sequence[RelatedFeature]) -> list[list[Any]]:
    return [[str(other.feature), _short(other.similarity)] for other in related]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else _short(value)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
