"""A feature of a transcoder: its layer, its index, and its notations.

L2/417      a feature, as tables, figures and files print it
2:5:417     the same feature at position 5; every notation of this package has the order layer:position:feature
2:-1:417    the feature at the last position
2:*:417     the feature at every position
2_417_5     the feature at position 5 in circuit-tracer's order, with the position last; it is read, never written
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from open_clt.errors import ConfigError

_FEATURE = re.compile(r"L?(?P<layer>\d{1,18})[/_](?P<index>\d{1,18})", re.ASCII)
_FEATURE_PLACE = re.compile(r"(?P<layer>\d{1,18}):(?P<position>-?\d{1,18}|\*):(?P<index>\d{1,18})", re.ASCII)
_CIRCUIT_TRACER_PLACE = re.compile(r"(?P<layer>\d{1,18})_(?P<index>\d{1,18})_(?P<position>\d{1,18})", re.ASCII)


class Feature(NamedTuple):
    """A feature of a transcoder; as a tuple, it indexes tensors of shape (layer, feature, ...)."""

    layer: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (hides tuple.index, which has no use here)
    """Index of the feature within its layer, counted from 0."""

    def __str__(self) -> str:
        return f"L{self.layer}/{self.index}"

    @staticmethod
    def parse(text: str) -> Feature:
        """Read ``L2/417``, ``2/417``, or ``2_417``, the notation of other programs; raises ConfigError otherwise."""
        match = _FEATURE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} does not name a feature; write L2/417 for feature 417 of layer 2.")
        return Feature(int(match["layer"]), int(match["index"]))


class FeaturePlace(NamedTuple):
    """A feature at one position of a text. A negative position counts from the end, and None is every position."""

    feature: Feature
    position: int | None

    def __str__(self) -> str:
        position = "*" if self.position is None else self.position
        return f"{self.feature.layer}:{position}:{self.feature.index}"

    @staticmethod
    def parse(text: str) -> FeaturePlace:
        """Read ``layer:position:feature``, or circuit-tracer's ``layer_feature_position``.

        The position ``*`` is every position, as is a missing one (``L2/417`` or ``2_417``). Raises ConfigError for any
        other text.
        """
        match = _FEATURE_PLACE.fullmatch(text) or _CIRCUIT_TRACER_PLACE.fullmatch(text)
        if match is not None:
            position = None if match["position"] == "*" else int(match["position"])
            return FeaturePlace(Feature(int(match["layer"]), int(match["index"])), position)
        if _FEATURE.fullmatch(text):
            return FeaturePlace(Feature.parse(text), None)
        raise ConfigError(
            f"{text!r} does not name a feature; write layer:position:feature, such as 2:5:417, with * for every "
            "position."
        )


def check_labels(labels: Mapping[Any, Any]) -> None:
    """Raise ConfigError unless all keys are features, which count from 0, and all labels are texts."""
    for feature, label in labels.items():
        if not isinstance(feature, Feature) or min(feature) < 0:
            raise ConfigError(f"A label belongs to {feature!r}; give a Feature, whose numbers are at least 0.")
        if not isinstance(label, str):
            raise ConfigError(f"The label of {str(feature)!r} is {label!r}; it must be a string.")


def labels_json(labels: Mapping[Feature, str]) -> dict[str, str]:
    """The labels of features as a JSON file holds them: ``{"L2/417": "Texas"}``."""
    return {str(feature): label for feature, label in labels.items()}


def read_labels(content: Any) -> dict[Feature, str]:
    """Read the labels of features from the content of a JSON file.

    The keys are those that ``Feature.parse`` reads. Raises ConfigError for any other content.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(
            f'Labels are a {type(content).__name__}; they must be an object such as {{"L2/417": "Texas"}}.'
        )
    for key, label in cast(Mapping[str, Any], content).items():
        if not isinstance(label, str):
            raise ConfigError(f"The label of {key!r} is {label!r}; it must be a string.")
    return {Feature.parse(key): label for key, label in cast(Mapping[str, str], content).items()}
