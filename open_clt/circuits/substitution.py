"""Substitutions: a prompt with one token replaced by others, and what its features and its prediction become.

They show which features depend on a token, and whether they are active for another token in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.features.firing import encode_contexts
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.transcoder import Transcoder

Cell = tuple[int, int, int]
"""An activation of a prompt: layer, position and index of the feature."""


class Substitutions(NamedTuple):
    """A prompt with one token replaced, once for each of some tokens."""

    tokens: Int[Tensor, "variant position"]
    """Tokens of each variant of the prompt."""
    activations: Float[Tensor, "variant cell"]
    """Activations of some features in each variant."""
    predicted: Int[Tensor, "variant"]
    """Token that the model predicts after each variant."""

    __repr__ = short_repr


@torch.no_grad()
def substitute(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: Int[Tensor, "position"],
    position: int,
    replacements: Sequence[int],
    *,
    cells: Sequence[Cell],
) -> Substitutions:
    """Replace one token of a prompt by each of some tokens, and measure some activations and the prediction."""
    variants = prompt.expand(len(replacements), -1).clone()
    variants[:, position] = torch.tensor(replacements, device=variants.device, dtype=variants.dtype)
    activations = torch.zeros(len(replacements), len(cells))
    encoded, unused = encode_contexts(model, transcoder, variants), transcoder.first_position
    for layer in {cell[0] for cell in cells}:
        columns = [column for column, cell in enumerate(cells) if cell[0] == layer]
        dense = encoded[transcoder.config.place_of(layer)].dense().float().cpu().unflatten(0, (len(replacements), -1))
        places = [cells[column][1] - unused for column in columns], [cells[column][2] for column in columns]
        activations[:, columns] = dense[:, *places]
    states = model.states(variants)[:, -1]
    predicted = torch.cat([model.unembedding.logits(states[rows]).argmax(-1) for rows in _slices(model, len(states))])
    return Substitutions(variants, activations, predicted.cpu())


def _slices(model: LanguageModel, n_rows: int) -> list[slice]:
    return model.unembedding.slices(n_rows)


def most_surprising(model: LanguageModel, prompt: Int[Tensor, "position"]) -> int:
    """The position of the token that the model expects least from the tokens before it."""
    logits = model.logits(prompt[None])[0].float().log_softmax(-1)
    expected = logits[:-1].gather(1, prompt[1:, None].to(logits.device))[:, 0]
    return 1 + int(expected.argmin())
