"""Outputs of features: the tokens that decoders raise and lower, and the features whose decoders point the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.features.records import LayerOutputs, TokenEffect
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_BLOCK = 256
_SMALL = 2**30
"""Number of bytes up to which the directions of all features are kept as float32."""
_EFFECTS = 2**26
"""Number of effects on tokens that are held at a time."""


class Outputs(NamedTuple):
    """The tokens that a feature raises and lowers most: through the sum of its decoders, and through each of them."""

    top_tokens: tuple[TokenEffect, ...]
    bottom_tokens: tuple[TokenEffect, ...]
    by_layer: tuple[LayerOutputs, ...]

    __repr__ = short_repr


@final
class TokenNames:
    """The texts of a language model's tokens, each of which is decoded once."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._names: dict[int, str] = {}

    def of(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token."""
        unknown = sorted(set(tokens) - self._names.keys())
        self._names.update(zip(unknown, self._model.token_strings(unknown), strict=True))
        return [self._names[token] for token in tokens]


@torch.no_grad()
def outputs_of(
    model: LanguageModel, transcoder: Transcoder, names: TokenNames, chosen: Sequence[Feature], n_tokens: int
) -> list[Outputs]:
    """The outputs of some features of one layer, with ``n_tokens`` tokens on each side."""
    if not isinstance(transcoder, CrossLayerTranscoder):
        return [Outputs((), (), ()) for _ in chosen]  # what a feature of a MOLT writes depends on the input
    layer = chosen[0].layer
    indices = torch.tensor([feature.index for feature in chosen], device=transcoder.device)
    place = transcoder.config.place_of(layer)
    targets = transcoder.config.model_layers[place:]
    decoders = transcoder.decoders(place, indices).float()
    n_decoders = decoders.shape[1]
    # With one decoder, its effects are those of the sum.
    directions = torch.cat([decoders.sum(1, keepdim=True), decoders], dim=1) if n_decoders > 1 else decoders
    sides = _strongest(model, names, directions.flatten(0, 1), n_tokens)
    per_feature = directions.shape[1]
    outputs: list[Outputs] = []
    for start in range(0, len(sides), per_feature):
        total, *single = sides[start : start + per_feature]
        by_layer = [LayerOutputs(target, *side) for target, side in zip(targets, single or [total], strict=False)]
        outputs.append(Outputs(*total, tuple(by_layer)))
    return outputs


def _strongest(
    model: LanguageModel, names: TokenNames, directions: Float[Tensor, "row d_model"], n_tokens: int
) -> list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]]:
    """The tokens that each direction raises most, and those that it lowers most."""
    sides: list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]] = []
    for rows in directions.split(max(1, _EFFECTS // model.vocab_size)):
        effects = model.unembedding.effects(rows.to(model.device))
        count = min(n_tokens, effects.shape[1])
        columns: list[list[tuple[TokenEffect, ...]]] = []
        for sign in (1, -1):
            values, tokens = (sign * effects).topk(count, dim=1)
            texts = names.of(tokens.flatten().tolist())
            numbers = (sign * values).flatten().tolist()
            pairs = [TokenEffect(text, rounded(value)) for text, value in zip(texts, numbers, strict=True)]
            columns.append([tuple(pairs[start : start + count]) for start in range(0, len(pairs), count)])
        sides += zip(*columns, strict=True)
    return sides


def rounded(value: float) -> float:
    """A number with four significant digits, which are enough to see it; records of them take half the space."""
    return float(f"{value:.4g}")


@final
class Directions:
    """The decoder directions of all features, of length one: what each writes, summed over the layers it writes to."""

    def __init__(self, transcoder: Transcoder) -> None:
        config = transcoder.config
        self._rows: Float[Tensor, "row d_model"] | None = None
        if not isinstance(transcoder, CrossLayerTranscoder):
            return
        shape = config.n_layers * config.n_features, config.d_model
        self._rows = torch.zeros(shape, dtype=torch.float32 if 4 * shape[0] * shape[1] <= _SMALL else torch.bfloat16)
        for layer in range(config.n_layers):
            for indices in torch.arange(config.n_features, device=transcoder.device).split(_BLOCK):
                first = layer * config.n_features + int(indices[0])
                sums = transcoder.decoders(layer, indices).float().sum(1)
                self._rows[first : first + len(indices)] = functional.normalize(sums, dim=1).to("cpu", self._rows.dtype)

    def cosines(self, rows: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen row"] | None:
        """Cosines of some directions with all; None for a transcoder whose features have no direction."""
        return None if self._rows is None else (self._rows[rows] @ self._rows.T).float()
