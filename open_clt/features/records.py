"""Feature records: the texts on which a feature is most active, and the output tokens that it raises and lowers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.features.firing import ActivationStatistics, feature_activations
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


class FeatureExample(NamedTuple):
    """A context in which a feature is active."""

    tokens: tuple[str, ...]
    """Text of the token at each position."""
    activations: Float[Tensor, "position"]
    """Activation at each position."""
    peak: int
    """Position of the largest activation."""

    __repr__ = short_repr


class TokenEffect(NamedTuple):
    """The effect of a feature on the logit of a token."""

    token: str
    """Text of the token."""
    effect: float
    """Change of the token's logit per unit of activation, as ``Unembedding.effects`` computes it."""


@final
@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """A description of one feature: how often and where it is active, and which output tokens it raises and lowers."""

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

    __repr__ = short_repr


@torch.no_grad()
def feature_records(
    model: LanguageModel,
    transcoder: Transcoder,
    statistics: ActivationStatistics,
    chosen: Sequence[Feature],
    *,
    n_tokens: int = 10,
) -> list[FeatureRecord]:
    """Describe the chosen features on the texts of ``statistics``, each with ``n_tokens`` top and bottom tokens."""
    effects = model.unembedding.effects(decoder_directions(transcoder, chosen))
    records: list[FeatureRecord] = []
    for feature, effect in zip(chosen, effects, strict=True):
        contexts = statistics.best_contexts[feature][statistics.best_values[feature] != 0]
        record = FeatureRecord(
            feature=feature,
            density=float(statistics.density[feature]),
            max_activation=float(statistics.maximum[feature]),
            examples=tuple(_example(model, transcoder, statistics.contexts[context], feature) for context in contexts),
            top_tokens=_largest(model, effect, n_tokens, sign=1),
            bottom_tokens=_largest(model, effect, n_tokens, sign=-1),
        )
        records.append(record)
    return records


def _largest(
    model: LanguageModel, effects: Float[Tensor, "vocab"], count: int, *, sign: int
) -> tuple[TokenEffect, ...]:
    """The ``count`` tokens with the largest effects of one sign, strongest first."""
    values, tokens = (sign * effects).topk(min(count, effects.shape[0]))
    names = model.token_strings(tokens)
    return tuple(TokenEffect(name, sign * value) for name, value in zip(names, values.tolist(), strict=True))


def _example(
    model: LanguageModel, transcoder: Transcoder, context: Int[Tensor, "position"], feature: Feature
) -> FeatureExample:
    """The activations of a feature in one context."""
    activations = feature_activations(model, transcoder, context)
    along_context = activations.of([feature])[0]
    return FeatureExample(activations.tokens, along_context, int(along_context.abs().argmax()))
