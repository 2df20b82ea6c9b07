"""The JSON of a feature record, with the keys that circuit-tracer's viewer reads.

The viewer shows ``histogram`` as equal bins from ``act_min`` to ``act_max``, and takes the percentile of an activation
from ``quantile_values``. It would take an empty list as data, so a record without these numbers does not have the keys.
What the viewer's schema lacks stands under the key ``open_clt``, which other programs ignore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch

from open_clt import files
from open_clt.config.json import check_record
from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.records import (
    ExampleGroup,
    FeatureExample,
    FeatureLabel,
    FeatureRecord,
    LayerOutputs,
    RelatedFeature,
    TokenEffect,
    TokenShare,
)
from open_clt.transcoders.feature import Feature

TOP_EFFECTS = "top_logit_effects"
"""A key that only OpenCLT writes; it tells feature files of ours from those of other programs."""
_OWN = "open_clt"
_TOP = "Top activations"


def json_of(record: FeatureRecord, name: str) -> bytes:
    """The JSON of a record, in UTF-8; ``name`` names its transcoder.

    Raises CheckpointError for a record that cannot be read back.
    """
    subject = f"The record of feature {record.feature}"
    try:
        entry = _entry(record, name)
        record_of(entry, record.feature)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
        raise CheckpointError(f"{subject} cannot be written ({error}); measure the feature again.") from error
    # Half a character (a lone surrogate) is written as its number.
    return files.json_text(entry, subject, strict=True, indent=None).encode(errors="backslashreplace")


def record_of(entry: Mapping[str, Any], feature: Feature) -> FeatureRecord:
    """The record that the viewer's JSON describes; raises ValueError, LookupError or TypeError if it describes none."""
    first, groups = _groups(entry["examples_quantiles"])
    own = entry.get(_OWN, {})
    record = FeatureRecord(
        feature=feature,
        density=float(entry.get("activation_frequency", math.nan)),
        max_activation=float(entry.get("act_max", math.nan)),
        examples=first,
        **_outputs(entry),
        min_activation=float(entry.get("act_min", 0.0)),
        histogram=_counts(entry.get("histogram", [])),
        quantile_values=_ascending(entry.get("quantile_values", [])),
        groups=groups,
        outputs=tuple(LayerOutputs(int(part["layer"]), **_outputs(part)) for part in own.get("outputs", [])),
        fires_on=tuple(TokenShare(str(token), float(share)) for token, share in own.get("fires_on", [])),
        label=_label(own["label"]) if "label" in own else None,
        nearest=_related(own.get("nearest", [])),
        coactive=_related(own.get("coactive", [])),
    )
    check_record(record)
    return record


def _entry(record: FeatureRecord, name: str) -> dict[str, Any]:
    """The viewer's JSON for one feature, without the numbers that are not known."""
    numbers = {"act_max": _number(record.max_activation), "activation_frequency": _number(record.density)}
    measured = {
        "histogram": [int(count) if count == int(count) else count for count in record.histogram],
        "quantile_values": [_short(value) for value in record.quantile_values],
    }
    groups = (ExampleGroup(_TOP, record.examples), *record.groups)
    return {
        "transcoder_id": name,
        "index": record.feature.index,
        "examples_quantiles": [
            {"quantile_name": group.name, "examples": [_example_entry(example) for example in group.examples]}
            for group in groups
        ],
        **_output_entries(record),
        "act_min": record.min_activation,
        **{key: value for key, value in measured.items() if value},
        **{key: value for key, value in numbers.items() if value is not None},
        _OWN: _own_entry(record),
    }


def _own_entry(record: FeatureRecord) -> dict[str, Any]:
    """What the viewer's schema lacks; parts that are not known are left out."""
    own: dict[str, Any] = {
        "outputs": [{"layer": outputs.layer, **_output_entries(outputs)} for outputs in record.outputs],
        "fires_on": [[token, _short(share)] for token, share in record.fires_on],
        "nearest": [[str(feature), _short(similarity)] for feature, similarity in record.nearest],
        "coactive": [[str(feature), _short(similarity)] for feature, similarity in record.coactive],
    }
    if record.label is not None:
        label = record.label._asdict()
        own["label"] = {key: value for key, value in label.items() if value == value}  # NaN is not known
    return {key: value for key, value in own.items() if value}


def _example_entry(example: FeatureExample) -> dict[str, Any]:
    return {
        "tokens": list(example.tokens),
        "tokens_acts_list": [_short(value) for value in example.activations.tolist()],
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
    }


def _output_entries(outputs: FeatureRecord | LayerOutputs) -> dict[str, Any]:
    """The tokens that a decoder raises and lowers, and by how much, which only OpenCLT reads."""
    return {
        "top_logits": [effect.token for effect in outputs.top_tokens],
        "bottom_logits": [effect.token for effect in outputs.bottom_tokens],
        TOP_EFFECTS: [_number(effect.effect) for effect in outputs.top_tokens],
        "bottom_logit_effects": [_number(effect.effect) for effect in outputs.bottom_tokens],
    }


def _groups(parts: Sequence[Mapping[str, Any]]) -> tuple[tuple[FeatureExample, ...], tuple[ExampleGroup, ...]]:
    """The examples with the largest activations, which every program writes first, and those of ranges of quantiles."""
    groups = [
        ExampleGroup(str(part.get("quantile_name", "")), tuple(_example(example) for example in part["examples"]))
        for part in parts
    ]
    return (groups[0].examples, tuple(groups[1:])) if groups else ((), ())


def _example(entry: Mapping[str, Any]) -> FeatureExample:
    """An example; raises ValueError if its tokens, activations and peak do not fit together."""
    tokens, peak = tuple(entry["tokens"]), int(entry["train_token_ind"])
    activations = torch.tensor(entry["tokens_acts_list"], dtype=torch.float32)
    if activations.shape != (len(tokens),) or not bool(activations.isfinite().all()) or not 0 <= peak < len(tokens):
        raise ValueError(f"an example of {len(tokens)} tokens has other activations, or its peak is {peak}")
    return FeatureExample(tokens, activations, peak)


def _outputs(entry: Mapping[str, Any]) -> dict[str, tuple[TokenEffect, ...]]:
    """The tokens of both sides with their effects; NaN where the file has no effects."""
    sides: dict[str, tuple[TokenEffect, ...]] = {}
    for side in ("top", "bottom"):
        tokens = cast(Sequence[str], entry.get(f"{side}_logits", []))
        # Other programs write tokens without their effects.
        effects = cast(Sequence[float | None], entry.get(f"{side}_logit_effects", [None] * len(tokens)))
        pairs = zip(tokens, effects, strict=True)
        sides[f"{side}_tokens"] = tuple(
            TokenEffect(token, math.nan if effect is None else effect) for token, effect in pairs
        )
    return sides


def _counts(values: Sequence[Any]) -> tuple[float, ...]:
    """The counts of a histogram, which other programs may write as shares; raises ValueError if one is not a count."""
    counts = tuple(float(value) for value in values)
    if not all(math.isfinite(count) and count >= 0 for count in counts):
        raise ValueError("the histogram holds a number that is not a count")
    return counts


def _ascending(values: Sequence[Any]) -> tuple[float, ...]:
    """Quantiles; raises ValueError unless they are finite and ascend."""
    quantiles = tuple(float(value) for value in values)
    if not all(map(math.isfinite, quantiles)) or any(low > high for low, high in pairwise(quantiles)):
        raise ValueError("the quantiles of the activations are not finite or do not ascend")
    return quantiles


def _related(entries: Sequence[Sequence[Any]]) -> tuple[RelatedFeature, ...]:
    return tuple(RelatedFeature(Feature.parse(feature), float(similarity)) for feature, similarity in entries)


def _label(entry: Mapping[str, Any]) -> FeatureLabel:
    label = FeatureLabel(**entry)
    return label._replace(confidence=float(label.confidence), score=float(label.score))


def _number(value: float) -> float | None:
    """A number as JSON holds it: None if it is NaN, which says that it is not known."""
    return None if math.isnan(value) else float(value)


def _short(value: float) -> float:
    """The value rounded to nine digits, which are enough to restore a float32 exactly."""
    return float(f"{value:.9g}")
