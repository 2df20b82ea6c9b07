"""Single tokens: which tokens make a feature active when they stand alone, after BOS, which needs no text.

This is what the weights say of a feature: its encoder reads the token's embedding and what the blocks below add to it,
and attention sees BOS, but no other token.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config.arguments import checked_arguments
from open_clt.features.firing import encode_contexts
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

_MOST = 64
"""Number of tokens that are kept for each feature: those with the largest activations."""
_LEAST = 0.3
"""Share of the largest activation that a token must reach to count."""
_AT_ONCE = 256


class Strongest(NamedTuple):
    """The strongest tokens of the features of a layer."""

    values: Float[Tensor, "feature token"]
    tokens: Int[Tensor, "feature token"]

    __repr__ = short_repr


@final
class SingleTokens:
    """The tokens that make each feature active alone."""

    def __init__(self, names: list[str], layers: dict[int, Strongest]) -> None:
        self._names, self._layers = names, layers

    def of(self, feature: Feature) -> tuple[str, ...]:
        """The tokens whose activation is at least 0.3 of the largest, at most 64, strongest first."""
        values, tokens = (column[feature.index] for column in self._layers[feature.layer])
        kept = tokens[(values > 0) & (values >= _LEAST * values.max())]
        return tuple(self._names[token] for token in kept.tolist())


@checked_arguments
@torch.no_grad()
def single_tokens(model: LanguageModel, transcoder: Transcoder) -> SingleTokens:
    """Encode every token of the vocabulary alone, after BOS."""
    config = transcoder.config
    shape = config.n_features, 0
    nothing = Strongest(torch.zeros(shape), torch.zeros(shape, dtype=torch.long))
    layers = dict.fromkeys(config.model_layers, nothing)
    for start in range(0, model.vocab_size, _AT_ONCE):
        tokens = torch.arange(start, min(model.vocab_size, start + _AT_ONCE), device=model.device)
        contexts = torch.stack([torch.full_like(tokens, model.bos_token_id), tokens], dim=1)
        features = encode_contexts(model, transcoder, contexts)
        layers = {
            layer: _merged(kept, active, tokens) for (layer, kept), active in zip(layers.items(), features, strict=True)
        }
    return SingleTokens(model.token_strings(torch.arange(model.vocab_size)), layers)


def _merged(kept: Strongest, active: SparseFeatures, tokens: Int[Tensor, "token"]) -> Strongest:
    """The strongest of the tokens that are kept and of further tokens, whose last positions are encoded."""
    sizes = active.dense().abs().float().cpu().view(len(tokens), -1, active.n_features)[:, -1].T
    values = torch.cat([kept.values, sizes], dim=1)
    numbers = torch.cat([kept.tokens, tokens.cpu().expand(len(sizes), -1)], dim=1)
    order = values.topk(min(_MOST, values.shape[1]), dim=1)
    return Strongest(order.values, numbers.gather(1, order.indices))
