"""Slow, obvious statistics of a text: loops over tokens, words and features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.features.firing import feature_activations
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


def is_near(
    model: LanguageModel, contexts: Int[Tensor, "context position"], word: str, reach: int
) -> Bool[Tensor, "t"]:
    """Whether a word stands at most ``reach`` tokens from each token, with no BOS in between."""
    near: list[bool] = []
    for context in contexts:
        texts = model.token_strings(context)
        documents, document = list[int](), 0
        for token in context.tolist():
            document += token == model.bos_token_id
            documents.append(document)
        for place in range(len(texts)):
            places = range(max(0, place - reach), min(len(texts), place + reach + 1))
            near.append(
                any(
                    texts[other].strip() == word
                    and documents[other] == documents[place]
                    and int(context[other]) != model.bos_token_id
                    for other in places
                )
            )
    return torch.tensor(near)


def columns(
    model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"], chosen: Sequence[Feature]
) -> Float[Tensor, "token chosen"]:
    """The activations of some features at all tokens, context by context."""
    return torch.cat([feature_activations(model, transcoder, context).of(chosen).T for context in contexts]).double()


def covariance(first: Float[Tensor, "token"], second: Float[Tensor, "token"]) -> float:
    """The covariance of two columns over tokens."""
    return float(((first - first.mean()) * (second - second.mean())).mean())


def area(values: Sequence[float], near: Sequence[bool]) -> float:
    """The share of the pairs of a near and another token in which the near one has the larger value; ties are half."""
    rows = list(zip(values, near, strict=True))
    pairs = [(high, low) for high, is_high in rows if is_high for low, is_low in rows if not is_low]
    return sum((high > low) + 0.5 * (high == low) for high, low in pairs) / len(pairs)
