"""The JSON of a feature record, with the keys that circuit-tracer's viewer reads.

The viewer shows ``histogram`` as equal bins from ``act_min`` to ``act_max``, and takes the percentile of an activation
from ``quantile_values``. It would take an empty list as data, so a record without these numbers does not have the keys.
What the viewer's schema lacks stands under the key ``open_clt``, which other programs ignore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
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
    """The record that the viewer's JSON describes.

    Raises ValueError, LookupError, TypeError or ConfigError if it does not describe a whole record.
    """
    groups = _groups(entry["examples_quantiles"])
    own = entry.get(_OWN, {})
    top, bottom = _sides(entry)
    return FeatureRecord(
        feature=feature,
        density=_real(entry.get("activation_frequency", math.nan)),
        max_activation=_real(entry.get("act_max", math.nan)),
        # Every program writes the examples with the largest activations first.
        examples=groups[0].examples if groups else (),
        top_tokens=top,
        bottom_tokens=bottom,
        min_activation=_real(entry.get("act_min", 0.0)),
        histogram=_counts(entry.get("histogram", [])),
        quantile_values=_ascending(entry.get("quantile_values", [])),
        groups=groups[1:],
        outputs=tuple(LayerOutputs(_layer(part["layer"]), *_sides(part)) for part in own.get("outputs", [])),
        fires_on=tuple(TokenShare(_text(token), _real(share)) for token, share in own.get("fires_on", [])),
        nearest=_related(own.get("nearest", [])),
        coactive=_related(own.get("coactive", [])),
        label=_label(own["label"]) if "label" in own else None,
    )


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


def _groups(parts: Sequence[Mapping[str, Any]]) -> tuple[ExampleGroup, ...]:
    """Groups of examples; raises ValueError if an example's tokens, activations and peak do not fit together."""
    entries = [entry for part in parts for entry in part["examples"]]
    lengths = [len(entry["tokens"]) for entry in entries]
    # One tensor of all numbers is made much faster than one for each example.
    numbers = torch.tensor([value for entry in entries for value in entry["tokens_acts_list"]], dtype=torch.float32)
    if lengths != [len(entry["tokens_acts_list"]) for entry in entries] or not bool(numbers.isfinite().all()):
        raise ValueError("an example does not have one finite activation for each token")
    examples = iter(map(_example, entries, numbers.split(lengths)))
    return tuple(
        ExampleGroup(_text(part.get("quantile_name", "")), tuple(islice(examples, len(part["examples"]))))
        for part in parts
    )


def _example(entry: Mapping[str, Any], activations: Float[Tensor, "position"]) -> FeatureExample:
    tokens, peak = tuple(entry["tokens"]), entry["train_token_ind"]
    if not set(map(type, tokens)) <= {str} or type(peak) is not int or not 0 <= peak < len(tokens):
        raise ValueError(f"an example of {len(tokens)} tokens has a token that is not text, or its peak is {peak}")
    return FeatureExample(tokens, activations, peak)


def _sides(entry: Mapping[str, Any]) -> tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]:
    """The tokens that are raised and those that are lowered, with their effects; NaN where the file has no effects."""
    top, bottom = (
        tuple(
            TokenEffect(_text(token), math.nan if effect is None else _real(effect))
            # Other programs write tokens without their effects.
            for token, effect in zip(tokens, entry.get(f"{side}_logit_effects", [None] * len(tokens)), strict=True)
        )
        for side, tokens in ((side, entry.get(f"{side}_logits", [])) for side in ("top", "bottom"))
    )
    return top, bottom


def _counts(values: Sequence[Any]) -> tuple[float, ...]:
    """The counts of a histogram, which other programs may write as shares; raises ValueError if one is negative."""
    counts = tuple(map(_real, values))
    if any(count < 0 for count in counts):
        raise ValueError("the histogram holds a negative number")
    return counts


def _ascending(values: Sequence[Any]) -> tuple[float, ...]:
    """Quantiles; raises ValueError unless they ascend."""
    quantiles = tuple(map(_real, values))
    if any(low > high for low, high in pairwise(quantiles)):
        raise ValueError("the quantiles of the activations do not ascend")
    return quantiles


def _related(entries: Sequence[Sequence[Any]]) -> tuple[RelatedFeature, ...]:
    return tuple(RelatedFeature(Feature.parse(feature), _real(similarity)) for feature, similarity in entries)


def _label(entry: Mapping[str, Any]) -> FeatureLabel:
    label = FeatureLabel(**entry)
    if type(label.automatic) is not bool:
        raise TypeError(f"{label.automatic!r} does not say whether a label is automatic")
    return FeatureLabel(_text(label.text), _real(label.confidence), _real(label.score), label.automatic)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _real(value: object) -> float:
    """A number that is not infinite; it may be NaN, which says that it is not known."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isinf(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def _layer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not the number of a layer")
    return value


def _number(value: float) -> float | None:
    """A number as JSON holds it: None if it is NaN, which says that it is not known."""
    return None if math.isnan(value) else float(value)


def _short(value: float) -> float:
    """The number with the fewest digits that restore its float32 exactly."""
    return float(str(np.float32(value))) if value else 0.0
