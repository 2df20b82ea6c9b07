"""What there is to know about one feature: the texts that excite it, and the output tokens it speaks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.features.firing import ActivationStatistics, feature_activations
from open_clt.language.language_model import LanguageModel
from open_clt.language.unembedding import logit_effects
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


class FeatureExample(NamedTuple):
    """A context in which a feature is active."""

    tokens: tuple[str, ...]
    activations: Float[Tensor, "position"]
    peak: int
    """Position of the largest activation."""


class TokenEffect(NamedTuple):
    """How much a feature raises or lowers the logit of a token, per unit of activation."""

    token: str
    effect: float


@final
@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """One feature: how often and how much it fires, where it fires most, and what it writes."""

    feature: Feature
    density: float
    """Share of the tokens on which it is active."""
    max_activation: float
    examples: tuple[FeatureExample, ...]
    """Strongest first."""
    top_tokens: tuple[TokenEffect, ...]
    """Output tokens that it raises most, through the sum of its decoders."""
    bottom_tokens: tuple[TokenEffect, ...]


@torch.no_grad()
def feature_records(
    model: LanguageModel,
    transcoder: Transcoder,
    statistics: ActivationStatistics,
    chosen: Sequence[Feature],
    *,
    n_tokens: int = 10,
) -> list[FeatureRecord]:
    """Describe some features by the texts that ``statistics`` were taken on."""
    effects = logit_effects(model, decoder_directions(transcoder, chosen))
    records: list[FeatureRecord] = []
    for feature, effect in zip(chosen, effects, strict=True):
        contexts = statistics.best_contexts[feature][statistics.best_values[feature] > 0]
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
    values, tokens = (sign * effects).topk(min(count, effects.shape[0]))
    names = model.token_strings(tokens)
    return tuple(TokenEffect(name, sign * value) for name, value in zip(names, values.tolist(), strict=True))


def _example(
    model: LanguageModel, transcoder: Transcoder, context: Int[Tensor, "position"], feature: Feature
) -> FeatureExample:
    activations = feature_activations(model, transcoder, context)
    along = activations.of([feature])[0]
    return FeatureExample(activations.tokens, along, int(along.argmax()))
