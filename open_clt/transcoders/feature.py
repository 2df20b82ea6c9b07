"""A feature of a transcoder: its layer and its index, and the ways in which people and programs write it.

L2/417      a feature, as tables, figures and files print it
2:5:417     the feature at position 5: layer:position:feature, the order of every notation of this package
2:-1:417    at the last position; 2:*:417 is every position
2_417_5     the same node in circuit-tracer's notation, which puts the position last; it is read, never written
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from open_clt.errors import ConfigError

_FEATURE = re.compile(r"L?(?P<layer>\d+)[/_](?P<index>\d+)", re.ASCII)
_PLACE = re.compile(r"(?P<layer>\d+):(?P<position>-?\d+|\*):(?P<index>\d+)", re.ASCII)
_FOREIGN_PLACE = re.compile(r"(?P<layer>\d+)_(?P<index>\d+)_(?P<position>\d+)", re.ASCII)


class Feature(NamedTuple):
    """A feature of a transcoder; as a tuple it indexes tensors of shape (layer, feature, ...)."""

    layer: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (hides tuple.index, which has no use here)
    """Number of the feature within its layer."""

    def __str__(self) -> str:
        return f"L{self.layer}/{self.index}"

    @staticmethod
    def parse(text: str) -> Feature:
        """Read ``L2/417``, ``2/417``, or ``2_417`` as other programs write it; raises ConfigError on anything else."""
        match = _FEATURE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} does not name a feature; write L2/417 for feature 417 of layer 2.")
        return Feature(int(match["layer"]), int(match["index"]))


class FeaturePlace(NamedTuple):
    """A feature at one position of a text, or (None) at every position; negative positions count from the end."""

    feature: Feature
    position: int | None

    def __str__(self) -> str:
        position = "*" if self.position is None else self.position
        return f"{self.feature.layer}:{position}:{self.feature.index}"

    @staticmethod
    def parse(text: str) -> FeaturePlace:
        """Read ``layer:position:feature``, with ``*`` for every position, or circuit-tracer's order.

        A feature without a position (``L2/417`` or ``2_417``) is meant at every position. Raises ConfigError on
        anything else.
        """
        match = _PLACE.fullmatch(text) or _FOREIGN_PLACE.fullmatch(text)
        if match is not None:
            position = None if match["position"] == "*" else int(match["position"])
            return FeaturePlace(Feature(int(match["layer"]), int(match["index"])), position)
        if _FEATURE.fullmatch(text):
            return FeaturePlace(Feature.parse(text), None)
        raise ConfigError(
            f"{text!r} does not name a feature; write layer:position:feature, such as 2:5:417 (* is every position)."
        )


def labels_json(labels: Mapping[Feature, str]) -> dict[str, str]:
    """Names of features as a file holds them: ``{"L2/417": "Texas"}``."""
    return {str(feature): label for feature, label in labels.items()}


def read_labels(content: Any) -> dict[Feature, str]:
    """Read names of features, whose keys are as ``Feature.parse`` reads them; raises ConfigError on anything else."""
    if not isinstance(content, Mapping):
        raise ConfigError('Names of features must be an object such as {"L2/417": "Texas"}.')
    for key, label in cast(Mapping[str, Any], content).items():
        if not isinstance(label, str):
            raise ConfigError(f"The name of {key!r} is {label!r}; it must be a text.")
    return {Feature.parse(key): label for key, label in cast(Mapping[str, str], content).items()}
