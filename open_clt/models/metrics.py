"""Reconstruction and sparsity of a transcoder, accumulated over batches: what training and evaluation both report.

FVU (fraction of variance unexplained) of layer ``l`` is ``sum |y_hat - y|^2 / sum |y - mean(y)|^2`` over tokens and
dimensions of that layer. It is reported per layer: on GPT-2 one layer's variance outweighs all others together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.models.peers import ALONE, Peers
from open_clt.models.sparse import LayerFeatures, active_counts


class TranscoderMetrics(NamedTuple):
    """Reconstruction and sparsity over the tokens seen. L0 is active features per token."""

    tokens: int
    fvu_per_layer: list[float]
    l0_per_layer: list[float]
    dead_share: float
    """Share of all features that fired on no token seen."""
    density: Float[Tensor, "layer feature"]
    """Share of the tokens on which each feature fired."""

    @property
    def fvu(self) -> float:
        """Mean FVU of the layers."""
        return sum(self.fvu_per_layer) / len(self.fvu_per_layer)

    @property
    def worst_fvu(self) -> float:
        """FVU of the worst layer."""
        return max(self.fvu_per_layer)

    @property
    def l0(self) -> float:
        """Mean L0 a layer."""
        return sum(self.l0_per_layer) / len(self.l0_per_layer)


@final
class MetricsAccumulator:
    """Sums over batches, in float64; ``result`` at any time.

    With ``peers``, who hold the other features, sparsity is that of all features, and densities are of those here.
    """

    def __init__(self, n_layers: int, n_features: int, d_model: int, *, peers: Peers = ALONE) -> None:
        self._peers = peers
        self._tokens = 0
        self._error = torch.zeros(n_layers, dtype=torch.float64)
        self._squares = torch.zeros(n_layers, dtype=torch.float64)
        self._sum = torch.zeros(n_layers, d_model, dtype=torch.float64)
        self._active = torch.zeros(n_layers, n_features, dtype=torch.long)

    @torch.no_grad()
    def update(
        self,
        features: Sequence[LayerFeatures],
        reconstruction: Float[Tensor, "batch layer d_model"],
        targets: Float[Tensor, "batch layer d_model"],
    ) -> None:
        """Add one batch of tokens."""
        exact = targets.to("cpu", torch.float64)
        self._tokens += exact.shape[0]
        self._error += (reconstruction.to("cpu", torch.float64) - exact).square().sum((0, 2))
        self._squares += exact.square().sum((0, 2))
        self._sum += exact.sum(0)
        for layer, active in enumerate(features):
            self._active[layer] += active_counts(active).cpu()

    def result(self) -> TranscoderMetrics:
        """The metrics of all tokens so far; raises ValueError before the first."""
        if self._tokens == 0:
            raise ValueError("No token was seen: metrics need at least one.")
        variance = self._squares - self._sum.square().sum(1) / self._tokens
        density = self._active / self._tokens
        dead = (self._active == 0).float().mean(1) / self._peers.shards
        l0, dead = self._peers.sum_features(torch.stack([density.sum(1), dead]))
        return TranscoderMetrics(
            tokens=self._tokens,
            fvu_per_layer=(self._error / variance.clamp(min=1e-12)).tolist(),
            l0_per_layer=l0.tolist(),
            dead_share=dead.mean().item(),
            density=density.float(),
        )
