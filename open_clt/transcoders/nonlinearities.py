"""From pre-activations to features: ReLU, JumpReLU, TopK, BatchTopK.

A nonlinearity acts in two steps, so that gradients touch active entries only:

    select   looks at dense pre-activations, without gradients, and picks the entries that may matter;
    values   turns the pre-activations of those entries into feature values, differentiably.

Selection happens layer by layer; only BatchTopK across layers must see all layers of a batch (``couple``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.slices import ALONE, Peers
from open_clt.transcoders.sparse.codes import SparseFeatures

_GROUP = 8
"""Entries in a group of which ``largest`` takes the maximum first."""


class Nonlinearity(nn.Module, ABC):
    """Turns one layer's pre-activations into features."""

    couples_layers = False
    """Whether the selection of one layer depends on the others of the same batch (while training)."""
    peers: Peers = ALONE
    """Who holds the features that are not here, where features compete."""

    @abstractmethod
    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        """Pick the entries that may be active or need a gradient; their values are the pre-activations."""

    def candidates(
        self, preactivations: Float[Tensor, "batch feature"], layer: int, decoder_norms: Float[Tensor, "feature"]
    ) -> SparseFeatures:
        """What one layer brings to ``couple``; by default what it would select by itself."""
        return self.select(preactivations, layer)

    def couple(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        """Make the candidates of all layers compete; by default they do not."""
        return candidates

    def progress(self, share: float) -> None:
        """Hear which share of the training is done, 0 to 1; by default nothing depends on it."""
        return

    @abstractmethod
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        """Select the same at inference although pre-activations have been multiplied by these, which are above 0."""

    @abstractmethod
    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        """Feature values of selected entries, differentiable in pre-activations and thresholds."""

    def dense(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> Float[Tensor, "batch feature"]:
        """Feature values of all entries, for layers too dense to select."""
        batch, n_features = preactivations.shape
        every = torch.arange(n_features, device=preactivations.device).repeat(batch)
        return self.values(preactivations.flatten(), every, layer).view(batch, n_features)

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        """Share of entries that ``select`` would pick."""
        mask = self._mask(preactivations, layer)
        return int(mask.count_nonzero()) / mask.numel()

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        return preactivations > 0

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        """Per-feature thresholds that describe inference completely, or None where none do (TopK)."""
        return None


@final
class ReLU(Nonlinearity):
    """``max(pre, 0)``."""

    def __init__(self, config: ReLUConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        return SparseFeatures.from_mask(preactivations, preactivations > 0)

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        return functional.relu(preactivations)

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        return torch.zeros(self.n_features)

    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        pass  # what is above zero stays there


@final
class JumpReLU(Nonlinearity):
    """``pre * 1[pre > theta]``, theta learned by a straight-through estimator (Rajamanoharan et al., 2024, eq. 11-12).

    Thresholds are stored as logarithms, so that they stay positive.
    """

    def __init__(self, config: JumpReLUConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        start = torch.full((n_layers, n_features), config.initial_threshold)
        self.log_threshold = nn.Parameter(start.log())

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        theta = self.log_threshold[layer].detach().exp()
        # While training, entries just below the threshold are kept too: the estimator gives theta a gradient there.
        return preactivations > (theta - self.config.bandwidth / 2 if self.training else theta)

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        theta = self.log_threshold[layer].exp()[features]
        return cast(Tensor, _Jump.apply(preactivations, theta, self.config))

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        return self.log_threshold[layer].detach().exp()

    @torch.no_grad()
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        self.log_threshold.add_(factors.log())


class _Jump(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, pre: Tensor, theta: Tensor, config: JumpReLUConfig) -> Tensor:
        ctx.save_for_backward(pre, theta)
        cast(Any, ctx).config = config
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        (gradient,) = grad_outputs
        kernel = ((pre - theta).abs() < ctx.config.bandwidth / 2) * (theta / ctx.config.bandwidth)
        to_pre = gradient * (pre > theta)
        if ctx.config.gradient_to_preactivation:
            to_pre = to_pre + gradient * kernel
        return to_pre, -gradient * kernel, None


@final
class TopK(Nonlinearity):
    """The ``k`` largest positive pre-activations of each token and layer (Gao et al., 2024)."""

    def __init__(self, config: TopKConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        self._training_k = config.k

    @property
    def k(self) -> int:
        """Active features per token and layer, now: while training it may still be on its way."""
        return self._training_k if self.training else self.config.k

    def progress(self, share: float) -> None:
        self._training_k = annealed_k(self.config, share)

    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        raise ConfigError("TopK ranks features by their size, so none may be rescaled; convert it to JumpReLU first.")

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        batch, n_features = preactivations.shape
        top = largest(preactivations, self.k)
        offsets = torch.arange(batch + 1, device=preactivations.device) * self.k
        selected = SparseFeatures(top.values.flatten(), top.indices.flatten(), offsets, n_features)
        if self.peers.shards == 1:
            return selected
        return selected.kept(self.peers.winners(top.values, self.k).flatten())

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        return 0.0  # whatever k is, features are selected first: the selection is what makes TopK what it is

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        return functional.relu(preactivations)


@final
class BatchTopK(Nonlinearity):
    """The ``k * tokens`` largest activations of a batch, per layer or across layers (Bussmann et al., 2024).

    While training, each batch also moves a running estimate of the smallest selected score. At inference that threshold
    replaces the batch, so that a token's features never depend on other tokens. Across layers the score is the
    activation times its decoder norm, and the thresholds follow from one score threshold shared by all layers.
    """

    thresholds: Tensor

    def __init__(self, config: BatchTopKConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        self.n_layers = n_layers
        self.couples_layers = config.across_layers
        self._training_k = config.k
        self.register_buffer("thresholds", torch.zeros(n_layers, n_features))

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        if not self.training:
            return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))
        places = self._training_k * preactivations.shape[0] * self.peers.replicas
        smallest = self.peers.kth_largest(preactivations.flatten(), places)
        if not self.config.across_layers:
            self._move(layer, smallest)
        return SparseFeatures.from_mask(preactivations, (preactivations >= smallest) & (preactivations > 0))

    def progress(self, share: float) -> None:
        self._training_k = annealed_k(self.config, share)

    def candidates(
        self, preactivations: Float[Tensor, "batch feature"], layer: int, decoder_norms: Float[Tensor, "feature"]
    ) -> SparseFeatures:
        if not self.training:
            return self.select(preactivations, layer)
        scores = preactivations * decoder_norms
        # One layer may win all places there are, and can fill no more; nor can the features of one process.
        places = self._training_k * self.n_layers * preactivations.shape[0] * self.peers.replicas
        smallest = ALONE.kth_largest(scores.flatten(), places)
        return SparseFeatures.from_mask(preactivations, (scores >= smallest) & (preactivations > 0))

    def couple(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        if not (self.training and self.config.across_layers):
            return candidates
        scores = [layer.values * norms[layer.features] for layer, norms in zip(candidates, decoder_norms, strict=True)]
        places = self._training_k * self.n_layers * candidates[0].batch * self.peers.replicas
        smallest = self.peers.kth_largest(torch.cat(scores), places)
        for layer, norms in enumerate(decoder_norms):
            self._move(layer, smallest / norms.clamp(min=1e-8))
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
    def _move(self, layer: int, observed: Tensor) -> None:
        """Move the running threshold of a layer towards the one this batch used; the first batch sets it."""
        row = self.thresholds[layer]
        momentum = self.config.threshold_momentum if bool((row > 0).any()) else 0.0
        row.mul_(momentum).add_(observed * (1 - momentum))


class Largest(NamedTuple):
    """The largest entries of each row, in no order."""

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]


def largest(values: Float[Tensor, "batch feature"], k: int) -> Largest:
    """The ``k`` largest entries of each row.

    On a CPU in two rounds, each of which looks at fewer: the ``k`` largest lie in the ``k`` groups with the largest
    maxima.
    """
    groups, left_over = divmod(values.shape[1], _GROUP)
    if values.device.type != "cpu" or left_over or k > groups // 2:
        return Largest(*values.topk(k, dim=1, sorted=False))
    grouped = values.unflatten(1, (_GROUP, groups))  # group g holds every entry that is g modulo their number
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    members = grouped.gather(2, best[:, None].expand(-1, _GROUP, -1)).flatten(1)
    top = members.topk(k, dim=1, sorted=False)
    return Largest(top.values, top.indices // k * groups + best.gather(1, top.indices % k))


def annealed_k(config: TopKConfig | BatchTopKConfig, share: float) -> int:
    """``k`` when this share of the training is done: it moves linearly from ``initial_k``, and arrives in time."""
    start = config.k if config.initial_k is None else config.initial_k
    return round(start + (config.k - start) * min(1.0, share / config.anneal_share))


KINDS: dict[str, Callable[[Any, int, int], Nonlinearity]] = {
    ReLUConfig.kind: ReLU,
    JumpReLUConfig.kind: JumpReLU,
    TopKConfig.kind: TopK,
    BatchTopKConfig.kind: BatchTopK,
}
"""Every nonlinearity by the ``kind`` of its config; a new one is a line here and a member of NonlinearityConfig."""


def make_nonlinearity(config: NonlinearityConfig, n_layers: int, n_features: int) -> Nonlinearity:
    """The nonlinearity that a config describes."""
    return KINDS[config.kind](config, n_layers, n_features)
