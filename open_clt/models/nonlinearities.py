"""From pre-activations to features: ReLU, JumpReLU, TopK, BatchTopK.

A nonlinearity acts in two steps, so that gradients touch active entries only:

    select   looks at dense pre-activations, without gradients, and picks the entries that may matter;
    values   turns the pre-activations of those entries into feature values, differentiably.

Selection happens layer by layer; only BatchTopK across layers must see all layers of a batch (``couple``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, assert_never, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.models.sparse import SparseFeatures


class Nonlinearity(nn.Module, ABC):
    """Turns one layer's pre-activations into features."""

    couples_layers = False
    """Whether the selection of one layer depends on the others of the same batch (while training)."""

    @abstractmethod
    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        """Pick the entries that may be active or need a gradient; their values are the pre-activations."""

    def couple(
        self, selected: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        """Make the selections of all layers compete; by default they do not."""
        return selected

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
        return self._mask(preactivations, layer).float().mean().item()

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        return preactivations > 0

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        """Per-feature thresholds that describe inference completely, or None where none do (TopK)."""
        return None


@final
class ReLU(Nonlinearity):
    """``max(pre, 0)``."""

    def __init__(self, n_layers: int, n_features: int) -> None:
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

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        batch, n_features = preactivations.shape
        top = preactivations.topk(self.config.k, dim=1, sorted=False)
        offsets = torch.arange(batch + 1, device=preactivations.device) * self.config.k
        return SparseFeatures(top.values.flatten(), top.indices.flatten(), offsets, n_features)

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        return 0.0  # always sparse: the selection is what makes TopK what it is

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
        self.register_buffer("thresholds", torch.zeros(n_layers, n_features))

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        if not self.training:
            return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))
        share = self.n_layers if self.config.across_layers else 1  # one layer may win what all of them are given
        keep = min(self.config.k * share * preactivations.shape[0], preactivations.numel())
        flat = preactivations.flatten()
        smallest = flat.topk(keep, sorted=False).values.min().clamp(min=0)
        if not self.config.across_layers:
            self._move(layer, smallest)
        mask = (preactivations >= smallest) & (preactivations > 0)
        return SparseFeatures.from_mask(preactivations, mask)

    def couple(
        self, selected: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        if not (self.training and self.config.across_layers):
            return selected
        scores = [layer.values * norms[layer.features] for layer, norms in zip(selected, decoder_norms, strict=True)]
        every = torch.cat(scores)
        keep = min(self.config.k * self.n_layers * selected[0].batch, every.shape[0])
        smallest = every.topk(keep, sorted=False).values.min() if keep else every.new_zeros(())
        for layer, norms in enumerate(decoder_norms):
            self._move(layer, smallest / norms.clamp(min=1e-8))
        return [_keep(layer, score >= smallest) for layer, score in zip(selected, scores, strict=True)]

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


def _keep(layer: SparseFeatures, mask: Tensor) -> SparseFeatures:
    counts = torch.bincount(layer.rows[mask], minlength=layer.batch)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    return SparseFeatures(layer.values[mask], layer.features[mask], offsets, layer.n_features)


def make_nonlinearity(config: NonlinearityConfig, n_layers: int, n_features: int) -> Nonlinearity:
    """The nonlinearity that a config describes."""
    match config:
        case ReLUConfig():
            return ReLU(n_layers, n_features)
        case JumpReLUConfig():
            return JumpReLU(config, n_layers, n_features)
        case TopKConfig():
            return TopK(config, n_layers, n_features)
        case BatchTopKConfig():
            return BatchTopK(config, n_layers, n_features)
        case _:
            assert_never(config)
