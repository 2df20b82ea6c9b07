"""Nonlinearities that rank features by size: TopK, and BatchTopK, which has thresholds at inference."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.config import BatchTopKConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.nonlinearities.base import Nonlinearity
from open_clt.transcoders.slices import ALONE
from open_clt.transcoders.sparse.codes import SparseFeatures

_GROUP = 8
"""Number of entries in a group whose maximum ``largest`` takes first."""


@final
class TopK(Nonlinearity):
    """TopK: the ``k`` largest positive pre-activations of each token and layer (Gao et al., 2024).

    With ``offsets``, a buffer, the ``k`` largest positive differences of pre-activation and offset are selected.
    """

    offsets: Tensor

    def __init__(self, config: TopKConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        self._training_k = config.k
        if config.offsets:
            self.register_buffer("offsets", torch.zeros(n_layers, n_features))

    @property
    def k(self) -> int:
        """Current number of active features per token and layer, which may change in training (``initial_k``)."""
        return self._training_k if self.training else self.config.k

    def progress(self, share: float) -> None:
        self._training_k = annealed_k(self.config, share)

    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        raise ConfigError(
            "Features of a TopK transcoder cannot be rescaled, because TopK ranks them by size; convert it to JumpReLU "
            "first."
        )

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        batch, n_features = preactivations.shape
        top = largest(preactivations - self.offsets[layer] if self.config.offsets else preactivations, self.k)
        values = preactivations.gather(1, top.indices) if self.config.offsets else top.values
        starts = torch.arange(batch + 1, device=preactivations.device) * self.k
        selected = SparseFeatures(values.flatten(), top.indices.flatten(), starts, n_features)
        if self.peers.shards == 1:
            return selected
        return selected.kept(self.peers.winners(top.values, self.k).flatten())

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        return 0.0  # features must be selected for every k, because the selection is the nonlinearity

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        if self.config.offsets:
            return preactivations * (preactivations > self.offsets[layer][features])
        return preactivations if self.config.keep_negative else functional.relu(preactivations)


@final
class BatchTopK(Nonlinearity):
    """BatchTopK: the ``k * tokens`` largest activations of a batch, per layer or across layers (Bussmann et al., 2024).

    In training, each batch also updates a running mean of the smallest selected score. At inference this threshold
    replaces the ranking, so that a token's features do not depend on other tokens. With ``layer_weights``, ``k`` is the
    mean over layers, and a layer has its share of it. Across layers, the score is the
    activation times its decoder norm, and the thresholds follow from one score threshold that all layers share.
    """

    thresholds: Tensor

    def __init__(self, config: BatchTopKConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        self.n_layers = n_layers
        self._training_k = config.k
        self.register_buffer("thresholds", torch.zeros(n_layers, n_features))

    @property
    def couples_layers(self) -> bool:
        return self.training and self.config.across_layers

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        if not self.training:
            return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))
        per_token = self._training_k * self.config.share_of(layer)
        n_selected = max(1, round(per_token * preactivations.shape[0] * self.peers.replicas))
        smallest = self.peers.kth_largest(preactivations.flatten(), n_selected)
        if not self.config.across_layers:
            self._update_thresholds(layer, smallest)
        return SparseFeatures.from_mask(preactivations, (preactivations >= smallest) & (preactivations > 0))

    def progress(self, share: float) -> None:
        self._training_k = annealed_k(self.config, share)

    def candidates(
        self, preactivations: Float[Tensor, "batch feature"], layer: int, decoder_norms: Float[Tensor, "feature"]
    ) -> SparseFeatures:
        if not self.training:
            return self.select(preactivations, layer)
        scores = preactivations * decoder_norms
        # All selected entries may lie in one layer and one process, so each of them gives that number of candidates.
        n_selected = self._training_k * self.n_layers * preactivations.shape[0] * self.peers.replicas
        smallest = ALONE.kth_largest(scores.flatten(), n_selected)
        return SparseFeatures.from_mask(preactivations, (scores >= smallest) & (preactivations > 0))

    def couple(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        if not (self.training and self.config.across_layers):
            return candidates
        scores = [layer.values * norms[layer.features] for layer, norms in zip(candidates, decoder_norms, strict=True)]
        n_selected = self._training_k * self.n_layers * candidates[0].batch * self.peers.replicas
        smallest = self.peers.kth_largest(torch.cat(scores), n_selected)
        for layer, norms in enumerate(decoder_norms):
            self._update_thresholds(layer, smallest / norms.clamp(min=1e-8))
        return [layer.kept(score >= smallest) for layer, score in zip(candidates, scores, strict=True)]

    @torch.no_grad()
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        self.thresholds.mul_(factors)

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        return functional.relu(preactivations)

    def dense(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> Float[Tensor, "batch feature"]:
        return functional.relu(preactivations) * self._mask(preactivations, layer)

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        return 0.0 if self.training else super().density(preactivations, layer)

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        return self.thresholds[layer]

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        return preactivations > self.thresholds[layer]

    @torch.no_grad()
    def _update_thresholds(self, layer: int, of_batch: Tensor) -> None:
        """Move the running thresholds of a layer towards those of a batch; the first batch sets them."""
        thresholds = self.thresholds[layer]
        momentum = self.config.threshold_momentum if bool((thresholds > 0).any()) else 0.0
        thresholds.mul_(momentum).add_(of_batch * (1 - momentum))


class Largest(NamedTuple):
    """The largest entries of each row, not sorted."""

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]

    __repr__ = short_repr


def largest(values: Float[Tensor, "batch feature"], k: int) -> Largest:
    """The ``k`` largest entries of each row.

    A CPU finds them faster in two rounds: first the ``k`` groups of entries with the largest maxima, which hold the
    ``k`` largest entries, and then these entries among the members of the groups.
    """
    n_groups, remainder = divmod(values.shape[1], _GROUP)
    if values.device.type != "cpu" or remainder or k > n_groups // 2:
        return Largest(*values.topk(k, dim=1, sorted=False))
    grouped = values.unflatten(1, (_GROUP, n_groups))  # group g holds the entries whose index is g modulo n_groups
    best_groups = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    members = grouped.gather(2, best_groups[:, None].expand(-1, _GROUP, -1)).flatten(1)
    top = members.topk(k, dim=1, sorted=False)
    return Largest(top.values, top.indices // k * n_groups + best_groups.gather(1, top.indices % k))


def annealed_k(config: TopKConfig | BatchTopKConfig, share: float) -> int:
    """``k`` after this share of the training steps: it moves linearly from ``initial_k`` to ``k``."""
    initial_k = config.k if config.initial_k is None else config.initial_k
    return round(initial_k + (config.k - initial_k) * min(1.0, share / config.anneal_share))
