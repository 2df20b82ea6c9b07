"""TopK across layers: the largest features of a token in all layers together.

The score of a feature is its activation, or with ``weighted`` its activation times its decoder norm. At inference, a
feature is active if its score reaches the bound of its token, which lies midway between the smallest score that is
selected and the largest that is not. So the bound selects the same features however the scores are rounded, and a layer
can be selected from alone once the bound is known. Of equal scores at the bound, inference selects all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.config import TopKConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.nonlinearities.base import Nonlinearity
from open_clt.transcoders.nonlinearities.ranks import annealed_k, largest
from open_clt.transcoders.sparse.codes import SparseFeatures


@final
class TopKAcrossLayers(Nonlinearity):
    """TopK of all layers together: the ``k * n_layers``, or ``k_total``, largest positive scores of each token.

    In training, scores follow the decoders. At inference, decoder norms are a buffer, so that scores stay what they are
    when the standardisation is folded into the decoders. Zeros in it mean that the norms are not measured yet.
    """

    norms: Tensor

    def __init__(self, config: TopKConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        self.n_layers = n_layers
        self._training_k = config.k
        if config.weighted:
            self.register_buffer("norms", torch.zeros(n_layers, n_features))

    @property
    def couples_layers(self) -> bool:
        return True

    @property
    def k_total(self) -> int:
        """Current number of active features per token in all layers together; it may change in training."""
        if self.config.k_total is not None:
            return self.config.k_total
        return self.n_layers * (self._training_k if self.training else self.config.k)

    def progress(self, share: float) -> None:
        self._training_k = annealed_k(self.config, share)

    def ranking_norms(self, decoder_norms: Callable[[], Tensor], like: Tensor) -> Float[Tensor, "layer feature"]:
        if not self.config.weighted:
            return torch.ones_like(like)
        if self.training:
            self.norms.zero_()
            return decoder_norms()
        self.settle(decoder_norms)
        return self.norms

    @torch.no_grad()
    def settle(self, decoder_norms: Callable[[], Tensor]) -> None:
        if self.config.weighted and not bool(self.norms.any()):
            self.norms.copy_(decoder_norms())

    @torch.no_grad()
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        if not self.config.weighted:
            raise ConfigError(
                "Features of a TopK transcoder cannot be rescaled, because TopK ranks them by size; convert it to "
                "JumpReLU first."
            )
        self.norms.div_(factors)

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        raise ConfigError(
            "This TopK ranks the features of all layers of a token together, so one layer cannot be encoded alone; use "
            "encode, or give the bounds of the tokens, which score_bounds and ReplacementModel.token_bounds compute."
        )

    def candidates(
        self, preactivations: Float[Tensor, "batch feature"], layer: int, decoder_norms: Float[Tensor, "feature"]
    ) -> SparseFeatures:
        batch, n_features = preactivations.shape
        count = min(self.k_total + 1, n_features)  # one more than may be selected, for the bound
        top = largest(preactivations * decoder_norms, count).indices
        offsets = torch.arange(batch + 1, device=top.device) * count
        return SparseFeatures(preactivations.gather(1, top).flatten(), top.flatten(), offsets, n_features)

    def couple(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        scores = _scores(candidates, decoder_norms)
        if self.training or self.peers.shards > 1:
            selected = self._winners(scores)
        else:
            selected = _reaches(scores, self._bounds(scores)[:, None])
        masks = selected.split([layer.values.shape[0] // max(1, layer.batch) for layer in candidates], dim=1)
        return [layer.kept(mask.flatten()) for layer, mask in zip(candidates, masks, strict=True)]

    def bounds(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> Float[Tensor, "batch"]:
        return self._bounds(_scores(candidates, decoder_norms))

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        return functional.relu(preactivations)

    def _winners(self, scores: Float[Tensor, "batch candidate"]) -> Bool[Tensor, "batch candidate"]:
        """A mask of exactly the ``k_total`` largest scores of each token, over all processes, without those below 0."""
        k = min(self.k_total, scores.shape[1])
        top = largest(scores, k)
        won = top.values > 0
        if self.peers.shards > 1:
            won &= self.peers.winners(top.values, self.k_total)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, top.indices, won)

    def _bounds(self, scores: Float[Tensor, "batch candidate"]) -> Float[Tensor, "batch"]:
        """The score that selects the ``k_total`` largest of each token; 0 if all positive ones are selected."""
        k = self.k_total
        if scores.shape[1] <= k:
            return scores.new_zeros(scores.shape[0])
        top = scores.topk(k + 1, dim=1).values.clamp(min=0)
        selected, left = top[:, k - 1], top[:, k]
        middle = (selected + left) / 2
        return torch.where(middle > left, middle, selected)


def select_above(
    preactivations: Float[Tensor, "batch feature"],
    norms: Float[Tensor, "feature"],
    bounds: Float[Tensor, "bound"],
) -> SparseFeatures:
    """Select the entries of one layer whose scores, with these ranking norms, reach the bound of their token."""
    if bounds.shape[0] != preactivations.shape[0]:
        raise ConfigError(
            f"There are {bounds.shape[0]} bounds, but {preactivations.shape[0]} tokens are encoded; give the bounds of "
            "these tokens."
        )
    return SparseFeatures.from_mask(preactivations, _reaches(preactivations * norms, bounds[:, None]))


def _scores(
    candidates: list[SparseFeatures], norms: Float[Tensor, "layer feature"]
) -> Float[Tensor, "batch candidate"]:
    """The scores of the candidates of all layers, of which each layer has the same number for every token."""
    scored = [
        (layer.values * of_layer[layer.features]).view(layer.batch, -1)
        for layer, of_layer in zip(candidates, norms, strict=True)
    ]
    return torch.cat(scored, dim=1)


def _reaches(scores: Float[Tensor, "batch some"], bounds: Float[Tensor, "batch 1"]) -> Bool[Tensor, "batch some"]:
    return (scores >= bounds) & (scores > 0)
