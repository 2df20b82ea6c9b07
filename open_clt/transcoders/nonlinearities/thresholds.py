"""Nonlinearities with a threshold for each feature: ReLU, JumpReLU, and JumpReLU with fixed thresholds."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.config import FixedJumpReLUConfig, JumpReLUConfig, ReLUConfig
from open_clt.transcoders.nonlinearities.base import Nonlinearity
from open_clt.transcoders.sparse.codes import SparseFeatures


@final
class ReLU(Nonlinearity):
    """ReLU: ``max(pre, 0)``."""

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
        pass  # a positive factor does not change which pre-activations are above zero


@final
class JumpReLU(Nonlinearity):
    """JumpReLU: ``pre * 1[pre > theta]``, with a threshold ``theta`` that is learned for each feature.

    The gradients are those of a straight-through estimator (Rajamanoharan et al., 2024, eq. 11-12). Thresholds are
    stored as logarithms, so that they stay positive.
    """

    def __init__(self, config: JumpReLUConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.config = config
        thresholds = torch.full((n_layers, n_features), config.initial_threshold)
        self.log_threshold = nn.Parameter(thresholds.log())

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        theta = self.log_threshold[layer].detach().exp()
        # Training also needs the entries just below the threshold, where the estimator gives theta a gradient.
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
class FixedJumpReLU(Nonlinearity):
    """JumpReLU with thresholds of any sign, which training does not change: only pre-activations get a gradient.

    Where a threshold is negative, a feature is active with a negative value if its pre-activation lies between the two.
    """

    thresholds: Tensor

    def __init__(self, config: FixedJumpReLUConfig, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.zeros(n_layers, n_features))

    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        return SparseFeatures.from_mask(preactivations, self._mask(preactivations, layer))

    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        return preactivations * (preactivations > self.thresholds[layer][features])

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        return self.thresholds[layer]

    @torch.no_grad()
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        self.thresholds.mul_(factors)

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        return preactivations > self.thresholds[layer]
