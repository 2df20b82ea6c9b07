"""Standardisation of the activations that a transcoder reads and writes, layer by layer.

Each layer's activations are centred and scaled so that their mean squared norm is ``d_model``. The norms of layers
differ by orders of magnitude: in GPT-2, the variance of one layer is larger than that of all others together. Without
standardisation, a loss summed over layers would depend on one layer only.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_clt.short_repr import short_repr

_SMALLEST_SCALE = 1e-6


class Statistics(NamedTuple):
    """Mean and scale of the activations of every layer: ``standardised = (raw - mean) / scale``."""

    mean: Float[Tensor, "layer d_model"]
    scale: Float[Tensor, "layer"]

    __repr__ = short_repr


@final
class StatisticsEstimator:
    """Estimates mean and scale over all tokens that it is given, in float64."""

    def __init__(self, n_layers: int, d_model: int) -> None:
        self.tokens = 0
        self._sum = torch.zeros(n_layers, d_model, dtype=torch.float64)
        self._squares = torch.zeros(n_layers, dtype=torch.float64)

    def update(self, activations: Float[Tensor, "batch layer d_model"]) -> None:
        """Add a batch of tokens."""
        activations = activations.detach().to("cpu", torch.float64)
        self.tokens += activations.shape[0]
        self._sum += activations.sum(0)
        self._squares += activations.square().sum((0, 2))

    def statistics(self) -> Statistics:
        """The estimate from all tokens added so far; raises ValueError before the first token."""
        if self.tokens == 0:
            raise ValueError("The statistics have no tokens; call update with at least one.")
        mean = self._sum / self.tokens
        return statistics_of(mean, self._squares / self.tokens - mean.square().sum(1))


def statistics_of(mean: Float[Tensor, "layer d_model"], variance: Float[Tensor, "layer"]) -> Statistics:
    """The statistics of activations with this mean, and this mean squared distance of a token from it."""
    scale = (variance.clamp(min=0) / mean.shape[1]).sqrt().clamp(min=_SMALLEST_SCALE)
    return Statistics(mean.float(), scale.float())


@final
class Standardisation(nn.Module):
    """The statistics of inputs and targets, as buffers of a transcoder; the identity until ``set`` is called."""

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, n_layers: int, d_model: int) -> None:
        super().__init__()
        for name in ("input", "target"):
            self.register_buffer(f"{name}_mean", torch.zeros(n_layers, d_model))
            self.register_buffer(f"{name}_scale", torch.ones(n_layers))

    def set(self, inputs: Statistics, targets: Statistics) -> None:
        """Set the statistics of inputs and targets."""
        self.input_mean.copy_(inputs.mean)
        self.input_scale.copy_(inputs.scale)
        self.target_mean.copy_(targets.mean)
        self.target_scale.copy_(targets.scale)

    def inputs(self, raw: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """The standardised inputs of all layers, from raw ones."""
        return (raw - self.input_mean).div_(self.input_scale[:, None])

    def targets(self, raw: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """The standardised targets of all layers, from raw ones."""
        return (raw - self.target_mean).div_(self.target_scale[:, None])

    def errors(self, raw: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """Differences between targets and reconstructions in standardised units, from raw ones; losses need these."""
        return raw / self.target_scale[:, None]
