"""Feature records: where a feature is active, how strongly, which output tokens it raises, and which others are near.

``collecting/`` measures records on texts, and ``feature_files.py`` writes and reads them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from open_clt.html_repr import html_repr
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature


class FeatureExample(NamedTuple):
    """A part of a context in which a feature is active."""

    tokens: tuple[str, ...]
    """Text of the token at each position."""
    activations: Float[Tensor, "position"]
    """Activation at each position."""
    peak: int
    """Position of the largest activation of the whole context."""

    __repr__ = short_repr


class ExampleGroup(NamedTuple):
    """Examples whose peaks lie in one range of quantiles."""

    name: str
    """Range of the quantiles, such as ``peaks 80–90 %``: of all contexts in which the feature is active, 80 % have a
    lower peak, and 10 % have a higher one."""
    examples: tuple[FeatureExample, ...]
    """Contexts drawn from that range, highest peak first."""

    __repr__ = short_repr


class TokenEffect(NamedTuple):
    """The effect of a feature on the logit of a token."""

    token: str
    """Text of the token."""
    effect: float
    """Change of the token's logit per unit of activation, as ``Unembedding.effects`` computes it."""


class LayerOutputs(NamedTuple):
    """The output tokens that a feature raises and lowers most through its decoder to one layer."""

    layer: int
    """Layer that the decoder writes to."""
    top_tokens: tuple[TokenEffect, ...]
    """Tokens that the decoder raises most, strongest first."""
    bottom_tokens: tuple[TokenEffect, ...]
    """Tokens that the decoder lowers most, strongest first."""

    __repr__ = short_repr


class TokenShare(NamedTuple):
    """A token on which a feature is active."""

    token: str
    """Text of the token."""
    share: float
    """Share of the positions at which the feature is active that hold this token."""


class RelatedFeature(NamedTuple):
    """Another feature, and its similarity to the feature of a record."""

    feature: Feature
    """The other feature."""
    similarity: float
    """Cosine of the two features' decoder directions, or of their activity over tokens."""


class FeatureLabel(NamedTuple):
    """A short description of a feature in words."""

    text: str
    """The description."""
    confidence: float = math.nan
    """Confidence in the description, from 0 to 1; NaN if it was not measured, such as for a user's label."""
    score: float = math.nan
    """Balanced accuracy with which the description tells held-out contexts in which the feature is active from others;
    NaN if it was not measured."""
    automatic: bool = False
    """Whether a program made the description."""


@final
@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """A description of one feature. A number that is not known is NaN, and a list that is not known is empty."""

    feature: Feature
    """The feature that the record describes."""
    density: float
    """Share of the tokens on which the feature is active."""
    max_activation: float
    """Largest activation of the feature."""
    examples: tuple[FeatureExample, ...]
    """Contexts with the largest activations, strongest first."""
    top_tokens: tuple[TokenEffect, ...]
    """Output tokens that the sum of the feature's decoders raises most, strongest first."""
    bottom_tokens: tuple[TokenEffect, ...]
    """Output tokens that the sum of the feature's decoders lowers most, strongest first."""
    min_activation: float = 0.0
    """Lower end of the histogram: 0, or the lowest activation if the feature has negative activations."""
    histogram: tuple[float, ...] = ()
    """Number of activations in each of equal bins from ``min_activation`` to ``max_activation``."""
    quantile_values: tuple[float, ...] = ()
    """Quantiles 1 %, 2 %, ... 100 % of the activations that are not zero, in ascending order."""
    groups: tuple[ExampleGroup, ...] = ()
    """Examples from every range of quantiles, highest range first."""
    outputs: tuple[LayerOutputs, ...] = ()
    """Output tokens of each decoder, in the order of the layers that the feature writes to."""
    fires_on: tuple[TokenShare, ...] = ()
    """Tokens on which the feature is active most often, most frequent first."""
    nearest: tuple[RelatedFeature, ...] = ()
    """Features with the most similar decoder directions, most similar first."""
    coactive: tuple[RelatedFeature, ...] = ()
    """Features that are most often active on the same tokens, most similar first."""
    label: FeatureLabel | None = None
    """A description of the feature in words."""

    __repr__ = short_repr
    _repr_html_ = html_repr

    def percentile(self, activation: float) -> int | None:
        """The percentage of the feature's activations that are lower, rounded up; None without ``quantile_values``."""
        if not self.quantile_values:
            return None
        return min(bisect_left(self.quantile_values, activation) + 1, len(self.quantile_values))
