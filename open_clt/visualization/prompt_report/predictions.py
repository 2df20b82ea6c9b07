"""Predictions of the original and of the replacement model at each position of a prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.replacement.comparison import kl_divergences
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr


class Likely(NamedTuple):
    """A likely next token."""

    token: str
    """Text of the token."""
    probability: float


class Prediction(NamedTuple):
    """What both models predict after one token."""

    token: str
    """Text of the token."""
    original: tuple[Likely, ...]
    """The likeliest next tokens of the original model, likeliest first."""
    replacement: tuple[Likely, ...]
    """The likeliest next tokens of the replacement model."""
    kl_divergence: float
    """KL(original || replacement) of the next token, in nats."""

    __repr__ = short_repr


@torch.no_grad()
def predictions(replacement: ReplacementModel, tokens: Int[Tensor, "position"], count: int = 5) -> list[Prediction]:
    """Return the ``count`` likeliest next tokens of both models after each token, with their probabilities."""
    model, batch = replacement.model, tokens[None].to(replacement.model.device)
    states = model.states(batch)[0], replacement.states(batch)[0]
    rows: list[Prediction] = []
    names = model.token_strings(tokens)
    for part in model.unembedding.slices(len(tokens)):
        original, replaced = (model.unembedding.logits(of_model[part]).float() for of_model in states)
        divergences = kl_divergences(original, replaced).tolist()
        likely = [_likeliest(replacement, logits, count) for logits in (original, replaced)]
        rows += map(Prediction, names[part], *likely, divergences)
    return rows


def _likeliest(
    replacement: ReplacementModel, logits: Float[Tensor, "row vocab"], count: int
) -> list[tuple[Likely, ...]]:
    probabilities, ids = logits.softmax(-1).topk(min(count, logits.shape[1]))
    return [
        tuple(map(Likely, replacement.model.token_strings(row), shares.tolist()))
        for row, shares in zip(ids, probabilities, strict=True)
    ]
